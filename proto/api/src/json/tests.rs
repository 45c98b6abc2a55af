//! Tests of parsing JSON documents: order, duplicates, and Go's syntax errors.

use super::*;
use serde_json::json;

fn error(text: &str) -> String {
    parse(text.as_bytes()).err().unwrap_or_default()
}

#[test]
fn documents_keep_order_duplicates_and_numbers() {
    let node =
        parse(br#" {"b": 1.50, "a": [true, null, "x\u00e9\ud83d\ude00\n"], "b": -0} "#).expect("parses");
    let Node::Object(members) = &node else { panic!("an object") };
    assert_eq!(members.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>(), ["b", "a", "b"]);
    assert_eq!(node.get("b"), Some(&Node::Number("-0".into())));
    assert_eq!(node.to_value()["a"], json!([true, null, "xé😀\n"]));
}

#[test]
fn syntax_errors_are_those_of_go() {
    assert_eq!(error(""), "unexpected end of JSON input");
    assert_eq!(error("{"), "unexpected end of JSON input");
    assert_eq!(error("{]"), "invalid character ']' looking for beginning of object key string");
    assert_eq!(error("[1 2]"), "invalid character '2' after array element");
    assert_eq!(error("{\"a\" 1}"), "invalid character '1' after object key");
    assert_eq!(error("{\"a\":1 \"b\"}"), "invalid character '\"' after object key:value pair");
    assert_eq!(error("tru "), "invalid character ' ' in literal true (expecting 'e')");
    assert_eq!(error("1 x"), "invalid character 'x' after top-level value");
    assert_eq!(error("x"), "invalid character 'x' looking for beginning of value");
    assert_eq!(error("-x"), "invalid character 'x' in numeric literal");
    assert_eq!(error("[1,]"), "invalid character ']' looking for beginning of value");
    assert_eq!(error("\"\\q\""), "invalid character 'q' in string escape code");
}

#[test]
fn nesting_without_end_is_refused() {
    assert_eq!(error(&"[".repeat(20_000)), "invalid character '[' exceeded max depth");
    let deepest = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
    assert!(parse(deepest.as_bytes()).is_ok());
    assert!(serde_json::from_str::<Value>(&deepest).is_ok(), "what is accepted can be read from the store");
}
