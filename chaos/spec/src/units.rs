//! Durations, percentages and clock offsets in the notation of experiment files: `1m 30s`, `99.9%`, `-5s`.
//! `experiment` and `fault` parse their fields with it.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};
use serde::ser::{Serialize, Serializer};

/// Formats a duration in `humantime`'s notation, as in files and messages.
pub(crate) fn words(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// Parses a duration such as `1m 30s`; the error has the cause and a hint.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| {
        format!("`{text}` is no duration: {error}; hint: write it like 500ms, 10s or 1m 30s")
    })
}

/// `#[serde(with)]` module for a duration written as `10s`.
pub(crate) mod duration {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&words(*duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_any(DurationVisitor)
    }
}

/// `#[serde(with)]` module for a duration that may be missing.
pub(crate) mod optional {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        duration.map(words).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        // A field that is present must have a value: `for:` with nothing behind it is a mistake and does not
        // mean "until the end".
        duration::deserialize(deserializer).map(Some)
    }
}

struct DurationVisitor;

impl Visitor<'_> for DurationVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration like 500ms, 10s or 1m 30s")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        parse_duration(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Duration, E> {
        Err(E::custom(format_args!("{number} has no unit; hint: write {number}s or {number}ms")))
    }
}

/// A share of a whole, from 0 % to 100 %, to a hundredth of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u32);

impl Percent {
    /// The percentage 100 %.
    pub const WHOLE: Self = Self(10_000);

    /// Creates a percentage from hundredths of a percent (basis points); `None` above 10 000.
    pub fn from_hundredths(hundredths: u32) -> Option<Self> {
        (hundredths <= Self::WHOLE.0).then_some(Self(hundredths))
    }

    /// Returns the percentage in hundredths of a percent, 0 to 10 000.
    pub fn hundredths(self) -> u32 {
        self.0
    }

    /// Returns the percentage as a fraction from 0 to 1.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(Self::WHOLE.0)
    }

    /// Parses `99`, `99.9` or `99.95`, without the percent sign.
    fn parse(digits: &str) -> Option<Self> {
        let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
        let all_digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !all_digits(whole) || !all_digits(part) || part.len() > 2 {
            return None;
        }
        let part = part.parse::<u32>().ok()? * if part.len() == 1 { 10 } else { 1 };
        Self::from_hundredths(whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part)?)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => write!(f, "{whole}%"),
            (whole, part) if part % 10 == 0 => write!(f, "{whole}.{}%", part / 10),
            (whole, part) => write!(f, "{whole}.{part:02}%"),
        }
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PercentVisitor)
    }
}

struct PercentVisitor;

impl PercentVisitor {
    fn read<E: de::Error>(text: &str, digits: Option<&str>) -> Result<Percent, E> {
        digits.and_then(Percent::parse).ok_or_else(|| {
            E::custom(format_args!(
                "`{text}` is no percentage; hint: write 0% to 100%, with two decimals at most, like 99.9%"
            ))
        })
    }
}

impl Visitor<'_> for PercentVisitor {
    type Value = Percent;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a percentage like 99.9%")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Percent, E> {
        Self::read(text, text.strip_suffix('%'))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Percent, E> {
        let text = number.to_string();
        Self::read(&text, Some(&text))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Percent, E> {
        Self::read(&number.to_string(), None)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Percent, E> {
        let text = number.to_string();
        Self::read(&text, Some(&text))
    }
}

/// How far a clock is off: ahead of the true time, or behind it. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Offset {
    /// Whether the clock is behind.
    behind: bool,
    by: Duration,
}

impl Offset {
    /// Creates an offset ahead of the true time; `None` for zero.
    pub fn ahead(by: Duration) -> Option<Self> {
        (!by.is_zero()).then_some(Self { behind: false, by })
    }

    /// Creates an offset behind the true time; `None` for zero.
    pub fn behind(by: Duration) -> Option<Self> {
        (!by.is_zero()).then_some(Self { behind: true, by })
    }

    /// Returns whether the clock is behind the true time.
    pub fn is_behind(self) -> bool {
        self.behind
    }

    /// Returns the absolute offset, never zero.
    pub fn by(self) -> Duration {
        self.by
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.behind { '-' } else { '+' }, words(self.by))
    }
}

impl Serialize for Offset {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Offset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (behind, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text.strip_prefix('+').unwrap_or(&text)),
        };
        let by = parse_duration(digits).map_err(de::Error::custom)?;
        let offset = if behind { Self::behind(by) } else { Self::ahead(by) };
        offset.ok_or_else(|| de::Error::invalid_value(Unexpected::Str(&text), &"an offset like +5s or -5s"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn percentages_are_exact_to_a_hundredth() {
        for (text, hundredths) in [("0%", 0), ("99%", 9900), ("99.9%", 9990), ("0.05%", 5), ("100%", 10_000)]
        {
            let percent: Percent = from_value(json!(text)).unwrap();
            assert_eq!(percent.hundredths(), hundredths);
            assert_eq!(percent.to_string(), text);
        }
        assert_eq!(from_value::<Percent>(json!(30)).unwrap().to_string(), "30%");
        assert_eq!(from_value::<Percent>(json!(0.5)).unwrap().to_string(), "0.5%");
        assert!((Percent::from_hundredths(2_500).unwrap().fraction() - 0.25).abs() < 1e-12);
    }

    #[test]
    fn a_bad_percentage_says_how_to_write_it() {
        for bad in
            [json!("99"), json!("101%"), json!("99.999%"), json!(-1), json!("x%"), json!(".%"), json!(101)]
        {
            let error = from_value::<Percent>(bad.clone()).unwrap_err().to_string();
            assert!(error.contains("is no percentage; hint: write 0% to 100%"), "{bad}: {error}");
        }
        assert!(from_value::<Percent>(json!("42949673%")).is_err(), "no overflow");
    }

    #[test]
    fn offsets_keep_their_sign() {
        for text in ["+5s", "-5s", "-250ms"] {
            let offset: Offset = from_value(json!(text)).unwrap();
            assert_eq!(offset.to_string(), text);
            assert_eq!(offset.is_behind(), text.starts_with('-'));
        }
        assert_eq!(from_value::<Offset>(json!("5s")).unwrap(), from_value::<Offset>(json!("+5s")).unwrap());
        assert!(from_value::<Offset>(json!("-0s")).unwrap_err().to_string().contains("expected an offset"));
        assert!(from_value::<Offset>(json!("--5s")).is_err());
    }
}
