//! `resource.Quantity`: amounts such as `100m`, `64Mi`, `1e8`. Parses, compares and adds them, and prints
//! them in stock Kubernetes' canonical form. Used by the decoder, the scheduler and the agent.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::str::FromStr;

/// Nano units in one unit: a nano unit is the finest amount of a quantity.
const NANO: i128 = 1_000_000_000;

/// Maximum amount for arithmetic, in nano units: 10^29 units. A larger quantity is compared and printed as
/// written, and counts as this amount in sums.
const CAP: i128 = 10i128.pow(38);

/// Why a string is not a quantity, with Kubernetes' messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is not a number with an optional suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number cannot be read.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// The suffix does not exist.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// The family of suffixes with which a quantity is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `12e6`.
    DecimalExponent,
    /// `12Mi`.
    BinarySi,
    /// `12M`.
    DecimalSi,
}

/// An amount, exact to a billionth of a unit.
#[derive(Clone, Debug)]
pub struct Quantity {
    /// The amount in nano units, between `-CAP` and `CAP`.
    nanos: i128,
    format: Format,
    /// The text as written if it is canonical and stock Kubernetes keeps it; `None`: it is made when
    /// printed.
    text: Option<String>,
    /// The amount without its sign if it was written as more than [`CAP`]; otherwise `None`.
    beyond: Option<Box<HugeDecimal>>,
}

/// A decimal number beyond [`CAP`]: `digits * 10^exponent`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HugeDecimal {
    /// The decimal digits, without zeros at either end.
    digits: String,
    exponent: i64,
}

impl HugeDecimal {
    /// Makes a number from `digits`, which are not all zeros.
    fn new(digits: &str, exponent: i64) -> Box<Self> {
        // Digits below a billionth are dropped.
        let finer = (-9 - exponent).clamp(0, digits.len() as i64);
        let (digits, exponent) = (&digits[..digits.len() - finer as usize], exponent + finer);
        let digits = digits.trim_start_matches('0');
        let kept = digits.trim_end_matches('0');
        let exponent = exponent.saturating_add((digits.len() - kept.len()) as i64);
        Box::new(HugeDecimal { digits: kept.to_owned(), exponent })
    }

    /// Returns the digits and the exponent to print: a multiple of three, at most `limit`.
    fn canonical(&self, limit: i64) -> (String, i64) {
        let exponent = (self.exponent - self.exponent.rem_euclid(3)).min(limit);
        // Only a few zeros: a suffix's exponent is small, and without a suffix at most two are missing.
        let zeros = (self.exponent - exponent).clamp(0, 1000) as usize;
        (self.digits.clone() + &"0".repeat(zeros), exponent)
    }
}

impl PartialOrd for HugeDecimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for HugeDecimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let places = |b: &HugeDecimal| b.exponent.saturating_add(b.digits.len() as i64);
        places(self).cmp(&places(other)).then_with(|| self.digits.cmp(&other.digits))
    }
}

struct QuantityParts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

/// Splits a text as `parseQuantityString` does: sign, digits without leading zeros, fraction, suffix.
fn split(text: &str) -> Result<QuantityParts<'_>, Error> {
    let negative = text.starts_with('-');
    let body = text.strip_prefix(['-', '+']).unwrap_or(text);
    let body = body.trim_start_matches('0');
    if body.is_empty() {
        return Ok(QuantityParts { negative, whole: "0", fraction: "", suffix: "" });
    }
    let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let (whole, rest) = body.split_at(digits(body));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let letters = suffix.find(|c: char| !"eEinumkKMGTP".contains(c)).unwrap_or(suffix.len());
    let tail = &suffix[letters..];
    let tail = tail.strip_prefix(['-', '+']).unwrap_or(tail);
    if !tail.chars().all(|c| c.is_ascii_digit()) {
        return Err(Error::Format);
    }
    Ok(QuantityParts { negative, whole: if whole.is_empty() { "0" } else { whole }, fraction, suffix })
}

/// Returns base, exponent and format of a suffix.
fn interpret(suffix: &str) -> Result<(u32, i32, Format), Error> {
    const DECIMAL: [(&str, i32); 10] = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    const BINARY: [(&str, i32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
    if let Some((_, e)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((10, *e, Format::DecimalSi));
    }
    if let Some((_, e)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Ok((2, *e, Format::BinarySi));
    }
    if let Some(exponent) = suffix.strip_prefix(['e', 'E']).filter(|s| !s.is_empty()) {
        let exponent: i64 = exponent.parse().map_err(|_| Error::Suffix)?;
        // The bound exceeds the number of digits of any text and is far from overflow.
        let exponent = exponent.clamp(-1_000_000_000, 1_000_000_000) as i32;
        return Ok((10, exponent, Format::DecimalExponent));
    }
    Err(Error::Suffix)
}

/// Computes `digits * 10^scale` in nano units, rounded up (away from zero); `None` beyond [`CAP`].
fn decimal_nanos(digits: &str, scale: i64) -> Result<Option<i128>, Error> {
    const MAX_DIGITS: i64 = 38;
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Ok(Some(0));
    }
    let shift = scale + 9;
    if digits.len() as i64 + shift > MAX_DIGITS {
        return Ok(None);
    }
    if shift >= 0 {
        let value: i128 = digits.parse().map_err(|_| Error::Numeric)?;
        return Ok(Some(value * 10i128.pow(shift as u32)));
    }
    let kept = digits.len() as i64 + shift;
    if kept <= 0 {
        return Ok(Some(1));
    }
    let (kept, lost) = digits.split_at(kept as usize);
    let value: i128 = kept.parse().map_err(|_| Error::Numeric)?;
    Ok(Some(value + i128::from(lost.bytes().any(|b| b != b'0'))))
}

/// Returns whether stock Kubernetes keeps the written text instead of making the canonical one.
fn keeps_text(parts: &QuantityParts<'_>, exponent: i32, format: Format) -> bool {
    let digits = format!("{}{}", parts.whole, parts.fraction);
    let length = digits.len() as i32;
    match format {
        Format::BinarySi => {
            let fits = 15 - parts.whole.len() as i32 - (exponent as f32 * 3.0 / 10.0) as i32 > 0;
            let odd = digits.parse::<i64>().is_ok_and(|v| v & 0x07 != 0);
            parts.fraction.is_empty() && fits && exponent % 10 == 0 && odd
        }
        _ => {
            let scale = exponent - parts.fraction.len() as i32;
            length <= 18
                && scale >= -9
                && scale % 3 == 0
                && !digits.ends_with("000")
                && !digits.starts_with('0')
        }
    }
}

impl FromStr for Quantity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Format);
        }
        if text == "0" {
            return Ok(Quantity { text: Some(text.into()), ..Quantity::zero() });
        }
        let parts = split(text)?;
        let (base, exponent, mut format) = interpret(parts.suffix)?;
        // Upstream reads these with another parser than small ones, which rejects a text without a digit.
        let slow = if base == 2 { exponent >= 50 } else { exponent < -9 };
        let number = &text[..text.len() - parts.suffix.len()];
        if slow && !number.contains(|c: char| c.is_ascii_digit()) {
            return Err(Error::Numeric);
        }
        let digits = format!("{}{}", parts.whole, parts.fraction);
        let mut beyond = None;
        let mut nanos = if base == 10 {
            let scale = i64::from(exponent) - parts.fraction.len() as i64;
            decimal_nanos(&digits, scale)?.unwrap_or_else(|| {
                beyond = Some(HugeDecimal::new(&digits, scale));
                CAP
            })
        } else {
            binary_nanos(parts.whole, parts.fraction, exponent)?
        };
        let kept = keeps_text(&parts, exponent, format).then(|| text.to_owned());
        if format == Format::BinarySi && nanos > 0 && nanos < NANO {
            format = Format::DecimalSi;
        }
        if parts.negative {
            nanos = -nanos;
        }
        Ok(Quantity { nanos, format, text: kept, beyond })
    }
}

/// Computes `whole.fraction * 2^exponent` in nano units, rounded up, at most 2^63 - 1 units.
fn binary_nanos(whole: &str, fraction: &str, exponent: i32) -> Result<i128, Error> {
    let max = i128::from(i64::MAX) * NANO;
    let whole = whole.trim_start_matches('0');
    if whole.len() > 19 {
        return Ok(max);
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| Error::Numeric)? };
    let unit = NANO << exponent;
    let Some(whole) = whole.checked_mul(unit) else { return Ok(max) };
    // From the last digit to the first, so that each step is exact except for a remainder, which rounds up.
    let (mut nanos, mut exact) = (0, true);
    for digit in fraction.bytes().rev() {
        nanos += i128::from(digit - b'0') * unit;
        exact &= nanos % 10 == 0;
        nanos /= 10;
    }
    Ok((whole + nanos + i128::from(!exact)).min(max))
}

impl Quantity {
    /// Parses a quantity.
    pub fn parse(text: &str) -> Result<Self, Error> {
        text.parse()
    }

    fn of_nanos(nanos: i128, format: Format) -> Self {
        Quantity { nanos: nanos.clamp(-CAP, CAP), format, text: None, beyond: None }
    }

    /// Returns zero, printed as `0`.
    pub fn zero() -> Self {
        Self::of_nanos(0, Format::DecimalSi)
    }

    /// Makes a quantity of whole units.
    pub fn from_units(units: i64, format: Format) -> Self {
        Self::of_nanos(i128::from(units) * NANO, format)
    }

    /// Makes a quantity of thousandths, the unit in which CPU amounts are counted.
    pub fn from_milli(milli: i64) -> Self {
        Self::of_nanos(i128::from(milli) * 1_000_000, Format::DecimalSi)
    }

    /// Returns the amount in whole units, rounded up (away from zero), saturating.
    pub fn value(&self) -> i64 {
        self.scaled(NANO)
    }

    /// Returns the amount in thousandths, rounded up (away from zero), saturating.
    pub fn milli_value(&self) -> i64 {
        self.scaled(1_000_000)
    }

    fn scaled(&self, unit: i128) -> i64 {
        let (whole, rest) = (self.nanos / unit, self.nanos % unit);
        let rounded = whole + rest.signum();
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }

    /// Returns the amount's sign: -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nanos.signum() as i32
    }

    /// Returns whether the amount is zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Returns the suffix family.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns whether the amount is a whole number of units.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// Returns whether the amount is a whole number of thousandths.
    pub fn is_milli(&self) -> bool {
        self.nanos % 1_000_000 == 0
    }

    /// Rounds the amount up (away from zero) to thousandths.
    pub fn rounded_to_milli(&self) -> Quantity {
        let rest = self.nanos % 1_000_000;
        if rest == 0 {
            return self.clone();
        }
        Self::of_nanos(self.nanos - rest + rest.signum() * 1_000_000, self.format)
    }

    fn canonical(&self) -> String {
        if self.nanos == 0 {
            return "0".into();
        }
        let units = self.nanos / NANO;
        if self.format == Format::BinarySi && self.nanos % NANO == 0 && !(-1023..=1023).contains(&units) {
            return binary_text(units);
        }
        let limit = if self.format == Format::DecimalExponent { i64::MAX } else { 18 };
        let (value, exponent) = match &self.beyond {
            Some(beyond) => {
                let (digits, exponent) = beyond.canonical(limit);
                (if self.nanos < 0 { format!("-{digits}") } else { digits }, exponent)
            }
            None => {
                let (mut value, mut exponent) = (self.nanos, -9);
                while value % 1000 == 0 && exponent < limit {
                    value /= 1000;
                    exponent += 3;
                }
                (value.to_string(), exponent)
            }
        };
        let suffix = if self.format == Format::DecimalExponent {
            if exponent == 0 { String::new() } else { format!("e{exponent}") }
        } else {
            ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][((exponent + 9) / 3) as usize].to_owned()
        };
        format!("{value}{suffix}")
    }
}

fn binary_text(mut units: i128) -> String {
    let mut step = 0;
    while units % 1024 == 0 && step < 6 {
        units /= 1024;
        step += 1;
    }
    format!("{units}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][step])
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => f.write_str(text),
            None => f.write_str(&self.canonical()),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        let beyond = |q: &Self| q.beyond.clone();
        self.nanos.cmp(&other.nanos).then_with(|| match self.nanos < 0 {
            true => beyond(other).cmp(&beyond(self)),
            false => beyond(self).cmp(&beyond(other)),
        })
    }
}

impl AddAssign<&Quantity> for Quantity {
    fn add_assign(&mut self, other: &Quantity) {
        let format = if self.nanos == 0 { other.format } else { self.format };
        *self = Quantity::of_nanos(self.nanos.saturating_add(other.nanos), format);
    }
}

impl SubAssign<&Quantity> for Quantity {
    fn sub_assign(&mut self, other: &Quantity) {
        let format = if self.nanos == 0 { other.format } else { self.format };
        *self = Quantity::of_nanos(self.nanos.saturating_sub(other.nanos), format);
    }
}

impl Add<&Quantity> for Quantity {
    type Output = Quantity;
    fn add(mut self, other: &Quantity) -> Quantity {
        self += other;
        self
    }
}

impl Sub<&Quantity> for Quantity {
    type Output = Quantity;
    fn sub(mut self, other: &Quantity) -> Quantity {
        self -= other;
        self
    }
}

impl Neg for Quantity {
    type Output = Quantity;
    fn neg(mut self) -> Quantity {
        self.nanos = -self.nanos;
        self.text = None;
        self
    }
}

#[cfg(test)]
mod tests;
