//! The meaning of a scalar without quotes in YAML 1.1, rule for rule as in go-yaml v2's `resolve.go`. The
//! decoder uses it for values, the writer to find strings that need quotes.

use std::sync::LazyLock;

use regex::Regex;

/// The value of a scalar.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    /// A whole number above the range of `Int`.
    Uint(u64),
    Float(f64),
    Text(String),
    /// A date or time: a string for the decoder; the writer quotes strings that look like one.
    Time(String),
    /// The text of a `!!binary` scalar, in base64.
    Binary(String),
}

const PREFIX: &str = "tag:yaml.org,2002:";

static FLOAT: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$").ok());

static TIME: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let pattern = r"^[0-9]{4}-([0-9]{1,2})-([0-9]{1,2})(?:[Tt]([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})([.,][0-9]+)?(?:Z|[-+][0-9]{2}:[0-9]{2})| ([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})([.,][0-9]+)?)?$";
    Regex::new(pattern).ok()
});

/// Resolves a plain scalar or one with a tag; `tag` is the tag's long form, empty without a tag.
///
/// # Errors
///
/// Fails if the text is not of the tag's type.
pub(super) fn resolve(tag: &str, text: &str) -> Result<Scalar, String> {
    let short = tag.strip_prefix(PREFIX);
    match (tag, short) {
        ("", _) => Ok(plain(text, true)),
        (_, Some("str")) => Ok(Scalar::Text(text.to_owned())),
        (_, Some("binary")) => Ok(Scalar::Binary(text.to_owned())),
        (_, Some(name @ ("bool" | "int" | "float" | "null" | "timestamp"))) => {
            let found = plain(text, name == "timestamp");
            match (name, found) {
                ("float", Scalar::Int(v)) => Ok(Scalar::Float(v as f64)),
                (name, found) if type_name(&found) == name => Ok(found),
                (name, found) => {
                    Err(format!("yaml: cannot decode !!{} `{text}` as a !!{name}", type_name(&found)))
                }
            }
        }
        // An application-specific tag has no meaning here.
        _ => Ok(Scalar::Text(text.to_owned())),
    }
}

fn type_name(scalar: &Scalar) -> &'static str {
    match scalar {
        Scalar::Null => "null",
        Scalar::Bool(_) => "bool",
        Scalar::Int(_) | Scalar::Uint(_) => "int",
        Scalar::Float(_) => "float",
        Scalar::Text(_) => "str",
        Scalar::Time(_) => "timestamp",
        Scalar::Binary(_) => "binary",
    }
}

/// Returns the value of a plain scalar; `times` says whether it may be a time.
pub(super) fn plain(text: &str, times: bool) -> Scalar {
    if let Some(word) = word(text) {
        return word;
    }
    match text.as_bytes().first() {
        Some(b'.') => float(&between_digits(text)),
        Some(b'+' | b'-' | b'0'..=b'9') if times && is_time(text) => Some(Scalar::Time(text.to_owned())),
        Some(b'+' | b'-' | b'0'..=b'9') => number(&text.replace('_', "")),
        _ => None,
    }
    .unwrap_or_else(|| Scalar::Text(text.to_owned()))
}

/// Returns the value of a word such as `yes`, `null` or `.inf`; `None` for any other text.
fn word(text: &str) -> Option<Scalar> {
    Some(match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Scalar::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Scalar::Bool(false)
        }
        "" | "~" | "null" | "Null" | "NULL" => Scalar::Null,
        ".nan" | ".NaN" | ".NAN" => Scalar::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Scalar::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Scalar::Float(f64::NEG_INFINITY),
        _ => return None,
    })
}

/// Removes underscores between digits, the only ones that Go's `ParseFloat` accepts.
fn between_digits(text: &str) -> String {
    let bytes = text.as_bytes();
    let digit = |i: Option<usize>| i.and_then(|i| bytes.get(i)).is_some_and(u8::is_ascii_digit);
    let kept = |i: usize| bytes[i] != b'_' || !digit(i.checked_sub(1)) || !digit(i.checked_add(1));
    text.char_indices().filter(|(i, _)| kept(*i)).map(|(_, c)| c).collect()
}

/// Parses a decimal fraction that fits a double; otherwise `None`.
fn float(text: &str) -> Option<Scalar> {
    let shaped = FLOAT.as_ref().is_some_and(|pattern| pattern.is_match(text));
    let value: f64 = text.parse().ok().filter(|v: &f64| shaped && v.is_finite())?;
    Some(Scalar::Float(value))
}

/// Parses a number without underscores: as Go's `strconv.ParseInt` with base 0, then as a fraction, then as
/// go-yaml's own binary form.
fn number(text: &str) -> Option<Scalar> {
    let (negative, body) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if let Some(magnitude) = magnitude(body) {
        let signed = if negative { -i128::from(magnitude) } else { i128::from(magnitude) };
        if let Ok(value) = i64::try_from(signed) {
            return Some(Scalar::Int(value));
        }
        if !text.starts_with(['-', '+']) {
            return Some(Scalar::Uint(magnitude));
        }
    }
    if let Some(found) = float(text) {
        return Some(found);
    }
    // Go also accepts a sign after this prefix.
    if let Some(digits) = text.strip_prefix("0b") {
        return i64::from_str_radix(digits, 2).ok().map(Scalar::Int);
    }
    let digits = text.strip_prefix("-0b")?;
    i64::from_str_radix(&format!("-{digits}"), 2).ok().map(Scalar::Int)
}

/// Parses digits in the base given by their prefix: 0x, 0o, 0b; a plain 0 means octal too.
fn magnitude(body: &str) -> Option<u64> {
    let (digits, base) = match body.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&body[2..], 16),
        [b'0', b'o' | b'O', ..] => (&body[2..], 8),
        [b'0', b'b' | b'B', ..] => (&body[2..], 2),
        [b'0', _, ..] => (&body[1..], 8),
        _ => (body, 10),
    };
    // Rust accepts a sign at this position, Go does not.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    u64::from_str_radix(digits, base).ok()
}

/// Returns whether a text is a date or time in a form that go-yaml knows.
fn is_time(text: &str) -> bool {
    let Some(found) = TIME.as_ref().and_then(|pattern| pattern.captures(text)) else { return false };
    let part = |i: usize| found.get(i).and_then(|m| m.as_str().parse::<i8>().ok());
    let (Some(month), Some(day), Ok(year)) = (part(1), part(2), text[..4].parse::<i16>()) else {
        return false;
    };
    let clock = |i: usize| {
        part(i).is_none_or(|h| h < 24) && [i + 1, i + 2].map(part).iter().all(|p| p.is_none_or(|v| v < 60))
    };
    jiff::civil::Date::new(year, month, day).is_ok() && clock(3) && clock(7)
}
