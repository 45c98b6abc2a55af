//! Compares reader and writer with the results of `sigs.k8s.io/yaml` v1.6.0 that `cases.json` records, and
//! checks that no text exhausts memory or panics.

use serde_json::{Value, json};

use super::*;

const CASES: &str = include_str!("cases.json");

/// Removes from an error what may differ: Go prints whole values, and rewords an error of libyaml.
fn comparable(error: &str) -> String {
    let error = error.split(", value: ").next().unwrap_or(error).split("map key: ").next().unwrap_or(error);
    error.replace("hexdecimal", "hexadecimal")
}

fn shown(node: &Node) -> String {
    match node {
        Node::Number(text) => text.clone(),
        Node::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(",")),
        Node::Object(members) => {
            let members = members.iter().map(|(k, v)| format!("{}:{}", Value::from(k.as_str()), shown(v)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        other => other.to_value().to_string(),
    }
}

#[test]
fn texts_mean_what_kubernetes_reads_in_them() {
    // The cases are parsed with the numbers as written.
    let Node::Array(cases) = crate::json::parse(CASES.as_bytes()).expect("JSON") else { panic!("a list") };
    let mut wrong = Vec::new();
    for case in &cases {
        let Some(Node::String(text)) = case.get("yaml") else { panic!("{case:?}") };
        let strings = |key: &str| match case.get(key) {
            Some(Node::String(s)) => comparable(s),
            _ => String::new(),
        };
        let expected = case.get("json").map_or_else(|| strings("err"), shown);
        let (got, strict) = match parse(text.as_bytes(), 1 << 20) {
            Ok(document) => (shown(&document.node), document.strict.unwrap_or_default()),
            Err(error) => (comparable(&error), comparable(&error)),
        };
        if got != expected {
            wrong.push(format!("{text:?}\n  got      {got}\n  expected {expected}"));
        } else if comparable(&strict) != strings("strict") {
            wrong.push(format!("{text:?} strictly\n  got      {strict}\n  expected {}", strings("strict")));
        }
    }
    assert!(cases.len() > 250, "{}", cases.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn aliases_cannot_fill_the_memory() {
    let error = |text: &str| parse(text.as_bytes(), 1 << 20).expect_err("refused");
    let laughs: String =
        (1..30).map(|i| format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", "))).collect();
    assert_eq!(error(&format!("a0: &a0 x\n{laughs}")), "yaml: document contains excessive aliasing");
    let merges: String =
        (1..30).map(|i| format!("a{i}: &a{i} {{<<: [*a{0}, *a{0}], k{i}: 1}}\n", i - 1)).collect();
    assert_eq!(error(&format!("a0: &a0 {{x: 1}}\n{merges}")), "yaml: document contains excessive aliasing");
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(10_000), vec!["*a"; 200].join(", "));
    assert_eq!(error(&long), "yaml: document contains excessive aliasing");
    // Honest documents stay well below the limit: a thousand uses of a block of labels.
    let honest = format!("a: &a {{app: x, tier: y}}\nb: [{}]\n", vec!["{<<: *a, z: 1}"; 1000].join(", "));
    assert!(parse(honest.as_bytes(), 1 << 20).is_ok());
}

#[test]
fn depth_is_bounded_also_where_aliases_make_it() {
    for open in ["[", "{a: ", "- "] {
        let error = parse(open.repeat(20_000).as_bytes(), 1 << 20).expect_err("refused");
        assert!(error.contains("exceeded max depth"), "{error}");
    }
    let chain: String = (1..5000).map(|i| format!("a{i}: &a{i} [*a{}]\n", i - 1)).collect();
    let error = parse(format!("a0: &a0 x\n{chain}").as_bytes(), 1 << 30).expect_err("refused");
    assert!(error.contains("exceeded max depth") || error.contains("aliasing"), "{error}");
}

#[test]
fn what_is_written_is_read_back_as_it_was() {
    let Node::Array(cases) = crate::json::parse(CASES.as_bytes()).expect("JSON") else { panic!("a list") };
    // Every text of the cases, as a string: words, numbers, quotes, breaks and control characters.
    let mut strings: Vec<Value> = cases.iter().filter_map(|c| c.get("yaml")).map(Node::to_value).collect();
    let words: Vec<Value> = strings
        .iter()
        .filter_map(Value::as_str)
        .filter_map(|s| s.strip_prefix("a: ").or(s.strip_prefix("- ")))
        .map(Value::from)
        .collect();
    strings.extend(words);
    let keys: serde_json::Map<String, Value> =
        strings.iter().filter_map(Value::as_str).map(|s| (s.to_owned(), json!({"": [s, [s]]}))).collect();
    let numbers =
        json!([0, -1, 1.0, 0.5, 1e99, 1e-9, i64::MIN, u64::MAX, [], {}, null, true, [[1, []], {"a": []}]]);
    let value = json!({"strings": strings, "numbers": numbers, "keys": keys});
    let text = to_string(&value);
    let read = parse(text.as_bytes(), 0).expect("is read");
    assert_eq!(read.strict, None);
    // 1.0 is written as 1, as Go writes it.
    let whole = Node::from(&value).to_value().to_string().replace("1.0,", "1,");
    assert_eq!(read.node.to_value().to_string(), whole);
}

#[test]
fn objects_are_written_as_kubernetes_writes_them() {
    let value = json!({
        "b10": 1, "b9": "on", "B": "0644", "a": {"e": {}, "l": [], "n": null, "s": ["x", {"k": "v", "j": 1.5}]},
        "text": "two\nlines\n", "time": "2001-01-01", "base60": "1:30", "-": "x: y", "k/v": " lead",
    });
    assert_eq!(
        to_string(&value),
        "'-': 'x: y'\nB: \"0644\"\na:\n  e: {}\n  l: []\n  \"n\": null\n  s:\n  - x\n  - j: 1.5\n    k: v\nb9: \"on\"\nb10: 1\nbase60: \"1:30\"\nk/v: ' lead'\ntext: |\n  two\n  lines\ntime: \"2001-01-01\"\n"
    );
}

#[test]
fn a_text_of_directives_alone_does_not_hold_up_the_server() {
    let text = |count: usize| {
        let directives: String = (0..count).map(|i| format!("%TAG !t{i}! tag:example.com,{i}:\n")).collect();
        format!("{directives}---\n!t0!x a\n")
    };
    assert_eq!(super::parse(text(100).as_bytes(), 0).expect("reads").node, Node::String("a".into()));
    // With all of them read, this takes minutes.
    let error = super::parse(text(100_000).as_bytes(), 0).expect_err("refused");
    assert_eq!(error, "yaml: more than 100 %TAG directives");
}
