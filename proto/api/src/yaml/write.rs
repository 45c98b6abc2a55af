//! Writes a JSON value as YAML text like `sigs.k8s.io/yaml`: keys sorted, lists not indented, and quotes
//! around each string that would be read as another value.

use std::cmp::Ordering;
use std::fmt::Write;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::resolve::{Scalar, plain};
use crate::go;

/// Writes a value as one YAML document.
pub fn to_string(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(members) if !members.is_empty() => mapping(&mut out, members, 0, false),
        Value::Array(items) if !items.is_empty() => sequence(&mut out, items, 0, false),
        other => {
            scalar(&mut out, other, 0);
            out.push('\n');
        }
    }
    out
}

fn indent(out: &mut String, spaces: usize) {
    out.extend(std::iter::repeat_n(' ', spaces));
}

/// Writes members, sorted. If `begun`, the first member continues the current line.
fn mapping(out: &mut String, members: &serde_json::Map<String, Value>, spaces: usize, begun: bool) {
    let mut sorted: Vec<(&String, &Value)> = members.iter().collect();
    sorted.sort_by(|a, b| compare(a.0, b.0));
    for (i, (key, value)) in sorted.into_iter().enumerate() {
        if i > 0 || !begun {
            indent(out, spaces);
        }
        // A key is always written on one line.
        string(out, key, None);
        out.push(':');
        match value {
            Value::Object(members) if !members.is_empty() => {
                out.push('\n');
                mapping(out, members, spaces + 2, false);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                sequence(out, items, spaces, false);
            }
            other => {
                out.push(' ');
                scalar(out, other, spaces + 2);
                out.push('\n');
            }
        }
    }
}

fn sequence(out: &mut String, items: &[Value], spaces: usize, begun: bool) {
    for (i, item) in items.iter().enumerate() {
        if i > 0 || !begun {
            indent(out, spaces);
        }
        out.push_str("- ");
        match item {
            Value::Object(members) if !members.is_empty() => mapping(out, members, spaces + 2, true),
            Value::Array(items) if !items.is_empty() => sequence(out, items, spaces + 2, true),
            other => {
                scalar(out, other, spaces + 2);
                out.push('\n');
            }
        }
    }
}

/// Writes a value without members, and no line break after it. `spaces` is the indentation of the lines of
/// a literal string.
fn scalar(out: &mut String, value: &Value, spaces: usize) {
    match value {
        Value::String(text) => string(out, text, Some(spaces)),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => out.push_str(&go::general_float(float)),
            _ => out.push_str(&number.to_string()),
        },
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        other => out.push_str(&other.to_string()),
    }
}

/// Writes a string: as a literal if it has several lines and `literal` allows it, plain if it is read back
/// as the same string, otherwise in quotes.
fn string(out: &mut String, text: &str, literal: Option<usize>) {
    let printable = |c: char| !c.is_control() && !matches!(c, '\u{feff}' | '\u{2028}' | '\u{2029}');
    if let Some(spaces) = literal.filter(|_| text.contains('\n'))
        && text.chars().all(|c| c == '\n' || printable(c))
        && !text.starts_with([' ', '\n'])
        && text.split('\n').all(|line| !line.ends_with(' '))
    {
        let chomp = match (text.ends_with('\n'), text.ends_with("\n\n")) {
            (false, _) => "|-",
            (true, false) => "|",
            (true, true) => "|+",
        };
        out.push_str(chomp);
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            out.push('\n');
            if !line.is_empty() {
                indent(out, spaces);
                out.push_str(line);
            }
        }
    } else if !text.chars().all(printable)
        || !matches!(plain(text, true), Scalar::Text(_))
        || is_base_60(text)
    {
        double_quoted(out, text);
    } else if needs_quotes(text) {
        out.push('\'');
        out.push_str(&text.replace('\'', "''"));
        out.push('\'');
    } else {
        out.push_str(text);
    }
}

/// Returns whether a printable text of one line would be read as YAML syntax.
fn needs_quotes(text: &str) -> bool {
    let mut chars = text.chars();
    let (first, second) = (chars.next(), chars.next());
    let indicator = match first {
        Some('-' | '?' | ':') => second.is_none_or(|c| c == ' '),
        Some(c) => ",[]{}#&*!|>'\"%@` =".contains(c),
        None => true,
    };
    let (document, merge) = (text.starts_with("---") || text.starts_with("..."), text == "<<");
    indicator || document || merge || text.ends_with([' ', ':']) || text.contains(": ") || text.contains(" #")
}

fn double_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{2028}' => out.push_str("\\L"),
            '\u{2029}' => out.push_str("\\P"),
            '\u{feff}' => out.push_str("\\uFEFF"),
            c if c.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\x{:02X}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

static BASE_60: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?$").ok());

/// Returns whether other YAML 1.1 readers take a text for a number in base 60, such as `1:30`.
fn is_base_60(text: &str) -> bool {
    text.contains(':') && BASE_60.as_ref().is_some_and(|pattern| pattern.is_match(text))
}

/// Compares keys as go-yaml does: letters by code, other characters before letters, numbers by value.
fn compare(a: &str, b: &str) -> Ordering {
    let (left, right): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let Some(i) = left.iter().zip(&right).position(|(x, y)| x != y) else {
        return left.len().cmp(&right.len());
    };
    match (left[i].is_alphabetic(), right[i].is_alphabetic()) {
        (true, true) => return left[i].cmp(&right[i]),
        (true, false) => return Ordering::Greater,
        (false, true) => return Ordering::Less,
        (false, false) => {}
    }
    // A zero inside a number is one of its digits, a zero at its start is not.
    let inside = (left[i] == '0' || right[i] == '0')
        && left[..i].iter().rev().take_while(|c| c.is_ascii_digit()).any(|c| *c != '0');
    let start = u64::from(inside);
    let number = |chars: &[char]| {
        let digits = chars[i..].iter().take_while(|c| c.is_ascii_digit());
        digits.fold((start, 0), |(value, length): (u64, usize), c| {
            (value.wrapping_mul(10).wrapping_add(u64::from(*c) - u64::from('0')), length + 1)
        })
    };
    number(&left).cmp(&number(&right)).then(left[i].cmp(&right[i]))
}
