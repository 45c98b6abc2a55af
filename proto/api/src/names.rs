//! Name rules, such as for DNS labels, label keys and environment variable names, with the messages of
//! `k8s.io/apimachinery/pkg/util/validation`. Each rule returns its error messages, none if the value is
//! valid.

use std::sync::LazyLock;

use regex::Regex;

const DNS_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS_SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS_1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const LABEL_KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const C_IDENTIFIER: &str = "[A-Za-z_][A-Za-z0-9_]*";
const CONFIG_KEY: &str = "[-._a-zA-Z0-9]+";
const HEADER_NAME: &str = "[-A-Za-z0-9]+";
const PERCENT: &str = "[0-9]+%";
const WILDCARD: &str = r"\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";

const LABEL_KEY_MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// A rule for names: returns an error message for each thing that is wrong with a value, none if it is
/// valid.
pub type Rule = fn(&str) -> Vec<String>;

/// Maximum length of a DNS label, in characters.
pub const DNS_LABEL_MAX: usize = 63;
/// Maximum length of a DNS subdomain, in characters.
pub const DNS_SUBDOMAIN_MAX: usize = 253;

fn anchored(pattern: &str) -> Regex {
    // The patterns are constants of this file; a test compiles every one of them.
    #[allow(clippy::expect_used, reason = "constant patterns, each compiled by a test")]
    Regex::new(&format!("^(?:{pattern})$")).expect("constant pattern")
}

macro_rules! matcher {
    ($name:ident, $pattern:expr) => {
        fn $name(value: &str) -> bool {
            static RE: LazyLock<Regex> = LazyLock::new(|| anchored($pattern));
            // `$` would also match before a final newline in some engines; Rust's does not.
            RE.is_match(value)
        }
    };
}

matcher!(matches_dns_label, DNS_LABEL);
matcher!(matches_dns_subdomain, DNS_SUBDOMAIN);
matcher!(matches_dns_1035, DNS_1035);
matcher!(matches_label_key, LABEL_KEY);
matcher!(matches_label_value, LABEL_VALUE);
matcher!(matches_c_identifier, C_IDENTIFIER);
matcher!(matches_config_key, CONFIG_KEY);
matcher!(matches_header_name, HEADER_NAME);
matcher!(matches_percent, PERCENT);
matcher!(matches_wildcard, WILDCARD);

/// Makes the message `must be no more than N characters`, used by name rules.
pub fn max_len_message(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// Makes the message `must be no more than N bytes`, used for label keys and values.
fn max_bytes_message(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// Makes the message `must be between A and B, inclusive`.
pub fn inclusive_range_message(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// Makes the message `msg (e.g. 'a',  or 'b', regex used for validation is '...')`.
pub fn regex_message(message: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{pattern}')");
    }
    let mut out = format!("{message} (e.g. ");
    for (i, example) in examples.iter().enumerate() {
        if i > 0 {
            out.push_str(" or ");
        }
        out.push_str(&format!("'{example}', "));
    }
    out.push_str(&format!("regex used for validation is '{pattern}')"));
    out
}

/// Checks that a value is an RFC 1123 label: lower case alphanumeric and `-`, at most 63.
pub fn dns1123_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS_LABEL_MAX {
        errors.push(max_len_message(DNS_LABEL_MAX));
    }
    if !matches_dns_label(value) {
        if matches_dns_subdomain(value) {
            errors.push("must not contain dots".into());
        } else {
            let message = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
                           must start and end with an alphanumeric character";
            errors.push(regex_message(message, DNS_LABEL, &["my-name", "123-abc"]));
        }
    }
    errors
}

/// Checks that a value is an RFC 1123 subdomain: labels joined by dots, at most 253.
pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS_SUBDOMAIN_MAX {
        errors.push(max_len_message(DNS_SUBDOMAIN_MAX));
    }
    if !matches_dns_subdomain(value) {
        let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
                       '.', and must start and end with an alphanumeric character";
        errors.push(regex_message(message, DNS_SUBDOMAIN, &["example.com"]));
    }
    errors
}

/// Checks that a value is an RFC 1035 label: like a DNS label, starting with a letter (Service names).
pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS_LABEL_MAX {
        errors.push(max_len_message(DNS_LABEL_MAX));
    }
    if !matches_dns_1035(value) {
        let message = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                       alphabetic character, and end with an alphanumeric character";
        errors.push(regex_message(message, DNS_1035, &["my-name", "abc-123"]));
    }
    errors
}

/// Checks that a value is `*.` and a subdomain, as hosts of an Ingress may be.
pub fn wildcard_dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS_SUBDOMAIN_MAX {
        errors.push(max_len_message(DNS_SUBDOMAIN_MAX));
    }
    if !matches_wildcard(value) {
        let message = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which \
                       must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric \
                       character";
        errors.push(regex_message(message, WILDCARD, &["*.example.com"]));
    }
    errors
}

/// Checks that a value is `[prefix/]name`, the form of resource names and of keys of labels, annotations
/// and taints.
pub fn qualified_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let examples = ["MyName", "my.name", "123-abc"];
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".into());
            } else {
                errors.extend(label_key_prefix(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            *name
        }
        _ => {
            let message = regex_message(LABEL_KEY_MESSAGE, LABEL_KEY, &examples);
            return vec![format!(
                "a valid label key {message} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        errors.push(format!("name part {}", max_bytes_message(63)));
    }
    if !matches_label_key(name) {
        errors.push(format!("name part {}", regex_message(LABEL_KEY_MESSAGE, LABEL_KEY, &examples)));
    }
    errors
}

/// Checks that the prefix of a label key is a subdomain; errors say `bytes` instead of `characters`.
fn label_key_prefix(prefix: &str) -> Vec<String> {
    let mut errors = dns1123_subdomain(prefix);
    if prefix.len() > DNS_SUBDOMAIN_MAX
        && let Some(first) = errors.first_mut()
    {
        *first = max_bytes_message(DNS_SUBDOMAIN_MAX);
    }
    errors
}

/// Checks that a value is valid for a label: empty, or like the name part of a label key.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > 63 {
        errors.push(max_bytes_message(63));
    }
    if !matches_label_value(value) {
        let message = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
                       and must start and end with an alphanumeric character";
        errors.push(regex_message(message, LABEL_VALUE, &["MyValue", "my_value", "12345"]));
    }
    errors
}

/// Checks that a value is a C identifier: letters, digits and `_`, not starting with a digit.
pub fn c_identifier(value: &str) -> Vec<String> {
    if matches_c_identifier(value) {
        return Vec::new();
    }
    let message = "a valid C identifier must start with alphabetic character or '_', followed by a string of \
                   alphanumeric characters or '_'";
    vec![regex_message(message, C_IDENTIFIER, &["my_name", "MY_NAME", "MyName"])]
}

/// Checks that a value is an environment variable name in Kubernetes 1.34 and later: printable ASCII
/// without `=`.
pub fn env_var_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.is_empty() {
        errors.push("environment variable name must be non-empty".into());
    }
    if value.chars().any(|c| !(' '..='~').contains(&c) || c == '=') {
        let message = "a valid environment variable name must consist only of printable ASCII characters other than \
                       '='";
        errors.push(message.into());
    }
    errors
}

/// Checks that a value may be a key in the data of a ConfigMap or Secret.
pub fn config_map_key(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS_SUBDOMAIN_MAX {
        errors.push(max_len_message(DNS_SUBDOMAIN_MAX));
    }
    if !matches_config_key(value) {
        let message = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        errors.push(regex_message(message, CONFIG_KEY, &["key.name", "KEY_NAME", "key-name"]));
    }
    match value {
        "." => errors.push("must not be '.'".into()),
        ".." => errors.push("must not be '..'".into()),
        v if v.starts_with("..") => errors.push("must not start with '..'".into()),
        _ => {}
    }
    errors
}

/// Checks that a value is a port name (an IANA service name): at most 15 characters, one of them a letter,
/// without `--`.
pub fn port_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > 15 {
        errors.push(max_len_message(15));
    }
    let charset = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if value.is_empty() || !value.chars().all(charset) {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !value.chars().any(|c| c.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".into());
    }
    if value.contains("--") {
        errors.push("must not contain consecutive hyphens".into());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errors.push("must not begin or end with a hyphen".into());
    }
    errors
}

/// Checks that a value is a port number: 1 to 65535.
pub fn port_number(port: i64) -> Vec<String> {
    in_range(port, 1, 65535)
}

/// Checks that a number is between two others, inclusive.
pub fn in_range(value: i64, low: i64, high: i64) -> Vec<String> {
    if (low..=high).contains(&value) { Vec::new() } else { vec![inclusive_range_message(low, high)] }
}

/// Checks that a value is a percentage such as `25%`.
pub fn percent(value: &str) -> Vec<String> {
    if matches_percent(value) {
        return Vec::new();
    }
    let message = "a valid percent string must be a numeric string followed by an ending '%'";
    vec![regex_message(message, PERCENT, &["1%", "93%"])]
}

/// Checks that a value is the name of an HTTP header.
pub fn http_header_name(value: &str) -> Vec<String> {
    if matches_header_name(value) {
        return Vec::new();
    }
    let message = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_message(message, HEADER_NAME, &["X-Header-Name"])]
}

/// Checks that a value is a single path segment, as names in URLs are: neither `.` nor `..`, without `/`
/// and `%`.
pub fn path_segment(value: &str) -> Vec<String> {
    if value == "." || value == ".." {
        return vec![format!("may not be '{value}'")];
    }
    ['/', '%'].iter().filter(|c| value.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// Checks a prefix (`generateName`) by a name rule, as if a trailing `-` were a letter.
pub fn as_prefix(rule: Rule, value: &str) -> Vec<String> {
    match value.strip_suffix('-') {
        Some(rest) => rule(&format!("{rest}a")),
        None => rule(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_compiles() {
        for p in [
            DNS_LABEL,
            DNS_SUBDOMAIN,
            DNS_1035,
            LABEL_KEY,
            LABEL_VALUE,
            C_IDENTIFIER,
            CONFIG_KEY,
            HEADER_NAME,
            PERCENT,
            WILDCARD,
        ] {
            assert!(Regex::new(&format!("^(?:{p})$")).is_ok(), "{p}");
        }
    }

    #[test]
    fn dns_names_follow_their_rfc() {
        assert!(dns1123_label("a-b1").is_empty());
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(dns1123_label(&"a".repeat(64)), ["must be no more than 63 characters"]);
        assert!(
            dns1123_label("A")[0].contains("regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?'")
        );
        assert!(dns1123_subdomain("a.b-c.d").is_empty());
        assert!(!dns1123_subdomain("a..b").is_empty());
        assert!(!dns1123_subdomain("a\n").is_empty());
        assert!(!dns1035_label("1a").is_empty());
    }

    #[test]
    fn label_keys_take_one_prefix() {
        assert!(qualified_name("example.com/a_B.c").is_empty());
        assert!(qualified_name("a/b/c")[0].ends_with("prefix and '/' (e.g. 'example.com/MyName')"));
        assert_eq!(qualified_name("/a"), ["prefix part must be non-empty"]);
        assert_eq!(qualified_name("bad key!").len(), 1);
        assert!(qualified_name("")[0] == "name part must be non-empty");
    }

    #[test]
    fn port_names_need_a_letter_and_no_double_hyphen() {
        assert!(port_name("http-1").is_empty());
        assert_eq!(port_name("80"), ["must contain at least one letter (a-z)"]);
        assert_eq!(port_name("a--b"), ["must not contain consecutive hyphens"]);
    }

    #[test]
    fn a_prefix_may_end_in_a_hyphen() {
        assert!(as_prefix(dns1123_subdomain, "web-").is_empty());
        assert!(!as_prefix(dns1123_subdomain, "Web-").is_empty());
    }
}
