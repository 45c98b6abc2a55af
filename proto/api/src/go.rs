//! How Go prints values: `%q` strings and `encoding/json` output. Kubernetes' messages quote values this
//! way, and clients and tests compare the messages. Used by `field`, `status` and the decoder.

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

/// An approximation of `!unicode.IsPrint`: controls, separators other than space, private use, BOM.
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

/// Joins error messages as `utilerrors.Aggregate` prints them: one alone, several as `[a, b]`, each once.
pub fn aggregate<I: IntoIterator<Item = String>>(messages: I) -> String {
    let mut seen: Vec<String> = Vec::new();
    for message in messages {
        if !seen.contains(&message) {
            seen.push(message);
        }
    }
    match seen.len() {
        1 => seen.remove(0),
        _ => format!("[{}]", seen.join(", ")),
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
    fn an_aggregate_of_one_has_no_brackets_and_of_two_names_each_once() {
        assert_eq!(aggregate(["a".into()]), "a");
        assert_eq!(aggregate(["a".into(), "a".into()]), "a");
        assert_eq!(aggregate(["a".into(), "b".into()]), "[a, b]");
    }
}
