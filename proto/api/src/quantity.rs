//! `resource.Quantity`: amounts such as `100m`, `64Mi`, `1e8`. Parsing, the canonical form in which stock
//! Kubernetes prints them, comparison and arithmetic. Used by the decoder, the scheduler and the agent.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::str::FromStr;

/// Nano units: the finest a quantity can be.
const NANO: i128 = 1_000_000_000;

/// Why a string is no quantity; the texts are Kubernetes'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not of the shape number + suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number cannot be read.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// No such suffix.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// The family of suffixes a quantity is printed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `12e6`.
    DecimalExponent,
    /// `12Mi`.
    BinarySi,
    /// `12M`.
    DecimalSi,
}

/// An amount, exact to a billionth.
#[derive(Clone, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
    /// The text as written, kept where stock Kubernetes keeps it because it is canonical already.
    text: Option<String>,
}

struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

/// Splits as `parseQuantityString` does: sign, zeroes dropped, digits, fraction, suffix.
fn split(text: &str) -> Result<Parts<'_>, Error> {
    let negative = text.starts_with('-');
    let body = text.strip_prefix(['-', '+']).unwrap_or(text);
    let body = body.trim_start_matches('0');
    if body.is_empty() {
        return Ok(Parts { negative, whole: "0", fraction: "", suffix: "" });
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
    Ok(Parts { negative, whole: if whole.is_empty() { "0" } else { whole }, fraction, suffix })
}

/// Base, exponent and format of a suffix.
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
        let exponent = exponent.clamp(-1000, 1000) as i32;
        return Ok((10, exponent, Format::DecimalExponent));
    }
    Err(Error::Suffix)
}

/// `digits * 10^scale` in nanos, rounded up (away from zero), saturating.
fn decimal_nanos(digits: &str, scale: i32) -> Result<i128, Error> {
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Ok(0);
    }
    let shift = scale + 9;
    if shift >= 0 {
        if digits.len() + shift as usize > 38 {
            return Ok(i128::MAX);
        }
        let value: i128 = digits.parse().map_err(|_| Error::Numeric)?;
        return Ok(value.saturating_mul(10i128.saturating_pow(shift as u32)));
    }
    let cut = (-shift) as usize;
    if cut >= digits.len() {
        return Ok(1);
    }
    let (kept, lost) = digits.split_at(digits.len() - cut);
    if kept.len() > 38 {
        return Ok(i128::MAX);
    }
    let value: i128 = kept.parse().map_err(|_| Error::Numeric)?;
    Ok(value + i128::from(lost.bytes().any(|b| b != b'0')))
}

/// True where stock Kubernetes remembers the written text instead of making the canonical one.
fn keeps_text(parts: &Parts<'_>, exponent: i32, format: Format) -> bool {
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
            return Ok(Quantity { nanos: 0, format: Format::DecimalSi, text: Some(text.into()) });
        }
        let parts = split(text)?;
        let (base, exponent, mut format) = interpret(parts.suffix)?;
        let digits = format!("{}{}", parts.whole, parts.fraction);
        let scale = -(parts.fraction.len() as i32);
        let mut nanos = if base == 10 {
            decimal_nanos(&digits, scale + exponent)?
        } else {
            binary_nanos(&digits, scale, exponent)?
        };
        let kept = keeps_text(&parts, exponent, format).then(|| text.to_owned());
        if format == Format::BinarySi && nanos > 0 && nanos < NANO {
            format = Format::DecimalSi;
        }
        if parts.negative {
            nanos = -nanos;
        }
        Ok(Quantity { nanos, format, text: kept })
    }
}

/// `digits * 10^scale * 2^exponent` in nanos, rounded up, at most 2^63 - 1 units.
fn binary_nanos(digits: &str, scale: i32, exponent: i32) -> Result<i128, Error> {
    let max = i128::from(i64::MAX) * NANO;
    let digits = digits.trim_start_matches('0');
    if digits.len() > 30 {
        return Ok(max);
    }
    let value: i128 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| Error::Numeric)? };
    let Some(shifted) = value.checked_mul(1i128 << exponent) else { return Ok(max) };
    let places = 9 + scale;
    if places >= 0 {
        return Ok(shifted.saturating_mul(10i128.pow(places as u32)).min(max));
    }
    let Some(divisor) = 10i128.checked_pow((-places) as u32) else { return Ok(i128::from(value != 0)) };
    Ok(((shifted + divisor - 1) / divisor).min(max))
}

impl Quantity {
    /// Reads a quantity.
    pub fn parse(text: &str) -> Result<Self, Error> {
        text.parse()
    }

    /// Zero, printed as `0`.
    pub fn zero() -> Self {
        Quantity { nanos: 0, format: Format::DecimalSi, text: None }
    }

    /// A whole number of units.
    pub fn from_units(units: i64, format: Format) -> Self {
        Quantity { nanos: i128::from(units) * NANO, format, text: None }
    }

    /// Thousandths, as CPU amounts are counted.
    pub fn from_milli(milli: i64) -> Self {
        Quantity { nanos: i128::from(milli) * 1_000_000, format: Format::DecimalSi, text: None }
    }

    /// The amount in whole units, rounded up (away from zero), saturating.
    pub fn value(&self) -> i64 {
        self.scaled(NANO)
    }

    /// The amount in thousandths, rounded up (away from zero), saturating.
    pub fn milli_value(&self) -> i64 {
        self.scaled(1_000_000)
    }

    fn scaled(&self, unit: i128) -> i64 {
        let (whole, rest) = (self.nanos / unit, self.nanos % unit);
        let rounded = whole + rest.signum();
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nanos.signum() as i32
    }

    /// True for zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// The suffix family.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether the amount is a whole number of units.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// Whether the amount is a whole number of thousandths.
    pub fn is_milli(&self) -> bool {
        self.nanos % 1_000_000 == 0
    }

    /// The amount rounded up (away from zero) to thousandths.
    pub fn rounded_to_milli(&self) -> Quantity {
        let rest = self.nanos % 1_000_000;
        let nanos = if rest == 0 { self.nanos } else { self.nanos - rest + rest.signum() * 1_000_000 };
        Quantity { nanos, format: self.format, text: None }
    }

    fn canonical(&self) -> String {
        if self.nanos == 0 {
            return "0".into();
        }
        let units = self.nanos / NANO;
        if self.format == Format::BinarySi && self.nanos % NANO == 0 && !(-1023..=1023).contains(&units) {
            return binary_text(units);
        }
        let mut value = self.nanos;
        let mut exponent = -9;
        while value % 1000 == 0 && (exponent < 18 || self.format == Format::DecimalExponent) {
            value /= 1000;
            exponent += 3;
        }
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
        self.nanos == other.nanos
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
        self.nanos.cmp(&other.nanos)
    }
}

impl AddAssign<&Quantity> for Quantity {
    fn add_assign(&mut self, other: &Quantity) {
        if self.nanos == 0 {
            self.format = other.format;
        }
        self.nanos = self.nanos.saturating_add(other.nanos);
        self.text = None;
    }
}

impl SubAssign<&Quantity> for Quantity {
    fn sub_assign(&mut self, other: &Quantity) {
        if self.nanos == 0 {
            self.format = other.format;
        }
        self.nanos = self.nanos.saturating_sub(other.nanos);
        self.text = None;
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
