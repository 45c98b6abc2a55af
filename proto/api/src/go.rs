//! Prints values as Go does: `%q` strings and `encoding/json` output. Kubernetes' messages quote values
//! this way, and clients and tests compare the messages. Used by `field`, `status` and the decoder.

use std::collections::HashSet;
use std::fmt::Write;

use serde_json::Value;

/// Quotes a string as Go's `%q` (`strconv.Quote`) does.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => {
                push_escape(&mut out, format_args!("\\x{:02x}", c as u32))
            }
            c if is_unprintable(c) && (c as u32) < 0x10000 => {
                push_escape(&mut out, format_args!("\\u{:04x}", c as u32))
            }
            c if is_unprintable(c) => push_escape(&mut out, format_args!("\\U{:08x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn push_escape(out: &mut String, escape: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(escape);
}

/// Approximates `!unicode.IsPrint`: controls, separators other than space, private use, BOM.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{a0}' | '\u{ad}' | '\u{1680}' | '\u{2000}'..='\u{200f}' | '\u{2028}'..='\u{202f}' | '\u{205f}'..='\u{206f}' | '\u{3000}' | '\u{feff}' | '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..='\u{fffb}')
}

/// Encodes a value as Go's `json.Marshal` does: compact, keys sorted, `<`, `>` and `&` escaped.
pub fn json(value: &Value) -> String {
    let mut out = String::new();
    for c in value.to_string().chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

/// Writes a finite number as Go's `json.Marshal` does: `1`, `0.5`, `1e+21`, `1e-7`.
pub fn float(value: f64) -> String {
    let size = value.abs();
    if value != 0.0 && !(1e-6..1e21).contains(&size) {
        // Go's JSON writes e-7 where its other printers write e-07.
        return scientific(&format!("{value:e}")).replace("e-0", "e-");
    }
    value.to_string()
}

/// Writes a number as Go's `strconv.FormatFloat(value, 'g', -1, 64)` does: `0.5`, `1e+06`, `+Inf`.
pub fn general_float(value: f64) -> String {
    general(value, &format!("{value:e}"), value.to_string())
}

/// Writes the number rounded to 32 bits, as [`general_float`] does.
pub fn general_float32(value: f64) -> String {
    let short = value as f32;
    general(value, &format!("{short:e}"), short.to_string())
}

fn general(value: f64, scientific_text: &str, plain: String) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let exponent = scientific_text.rsplit_once('e').and_then(|(_, e)| e.parse::<i32>().ok()).unwrap_or(0);
    if (-4..6).contains(&exponent) { plain } else { scientific(scientific_text) }
}

/// Converts Rust's `1.5e-7` to Go's `1.5e-07`.
fn scientific(text: &str) -> String {
    let (mantissa, exponent) = text.rsplit_once('e').unwrap_or((text, "0"));
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// Joins error messages as `utilerrors.Aggregate` prints them: a single one alone, several as `[a, b]`,
/// each only once.
pub fn aggregate<I: IntoIterator<Item = String>>(messages: I) -> String {
    let (mut seen, mut kept) = (HashSet::new(), Vec::new());
    for message in messages {
        if seen.insert(message.clone()) {
            kept.push(message);
        }
    }
    match kept.len() {
        1 => kept.remove(0),
        _ => format!("[{}]", kept.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn strings_are_quoted_as_go_quotes_them() {
        assert_eq!(quote("a\"b\\c\n\u{1}é"), "\"a\\\"b\\\\c\\n\\x01é\"");
    }

    #[test]
    fn html_characters_are_escaped_in_json() {
        assert_eq!(super::json(&json!({"a": "<b>&"})), "{\"a\":\"\\u003cb\\u003e\\u0026\"}");
    }

    #[test]
    fn numbers_are_written_as_go_writes_them() {
        let json: Vec<String> = [1.0, 0.5, -0.0, 1e20, 1e21, 1e-6, 1e-7, 1.5e-10, 1e99].map(float).into();
        assert_eq!(
            json,
            ["1", "0.5", "-0", "100000000000000000000", "1e+21", "0.000001", "1e-7", "1.5e-10", "1e+99"]
        );
        let general: Vec<String> =
            [1.0, 123456.0, 1234567.0, 0.0001, 0.00001, f64::INFINITY].map(general_float).into();
        assert_eq!(general, ["1", "123456", "1.234567e+06", "0.0001", "1e-05", "+Inf"]);
        assert_eq!(general_float32(0.1), "0.1");
    }

    #[test]
    fn an_aggregate_of_one_has_no_brackets_and_of_two_names_each_once() {
        assert_eq!(aggregate(["a".into()]), "a");
        assert_eq!(aggregate(["a".into(), "a".into()]), "a");
        assert_eq!(aggregate(["a".into(), "b".into()]), "[a, b]");
    }
}
