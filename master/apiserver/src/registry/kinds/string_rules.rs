//! String rules that `proto_api::names` does not have, with stock Kubernetes' messages. Rules return error
//! messages; an empty list means that the value is valid.

use proto_api::names;

/// Returns the number before the `%` of a percentage; `None` where the text is none.
pub fn percent_value(value: &str) -> Option<i64> {
    value.strip_suffix('%').filter(|n| digits(n)).and_then(|n| n.parse().ok())
}

fn digits(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|c| c.is_ascii_digit())
}

/// Checks the name of an environment variable: printable ASCII without `=`.
pub fn env_name(value: &str) -> Vec<String> {
    let mut out = Vec::new();
    if value.is_empty() {
        out.push("environment variable name must be non-empty".to_owned());
    }
    if !value.bytes().all(|c| (b' '..=b'~').contains(&c) && c != b'=') {
        out.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    out
}

const UNDERSCORE_LABEL: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";

/// Checks a DNS subdomain whose labels may contain underscores, as DNS search paths do.
pub fn dns_subdomain_underscore(value: &str) -> Vec<String> {
    let mut out = Vec::new();
    if value.len() > 253 {
        out.push("must be no more than 253 characters".to_owned());
    }
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit() || c.is_ascii_lowercase());
    let inner = |c: char| matches!(c, '-' | '_') || c.is_ascii_digit() || c.is_ascii_lowercase();
    let good = |part: &str| {
        let part = part.strip_prefix('_').unwrap_or(part);
        edge(part.chars().next()) && edge(part.chars().last()) && part.chars().all(inner)
    };
    if !value.split('.').all(good) {
        let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', \
                       '-' or '.', and must start and end with an alphanumeric character";
        let regex = format!("{UNDERSCORE_LABEL}(\\.{UNDERSCORE_LABEL})*");
        out.push(names::regex_message(message, &regex, &["example.com"]));
    }
    out
}

/// Checks the name of a Node, Pod, Secret or most other kinds, as other objects refer to it.
pub fn object_name(value: &str) -> Vec<String> {
    names::dns1123_subdomain(value)
}

/// Returns whether a name is valid for a sysctl, with dots or slashes between its segments.
pub fn is_sysctl_name(value: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit() || c.is_ascii_lowercase());
    let inner = |c: char| matches!(c, '-' | '_') || c.is_ascii_digit() || c.is_ascii_lowercase();
    let good = |part: &str| edge(part.chars().next()) && edge(part.chars().last()) && part.chars().all(inner);
    value.len() <= 253 && value.split(['.', '/']).all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_are_digits_and_a_sign() {
        assert_eq!(percent_value("25%"), Some(25));
        assert_eq!(percent_value("25"), None);
        assert_eq!(percent_value("%"), None);
    }

    #[test]
    fn environment_names_are_printable_ascii_without_an_equals_sign() {
        assert!(env_name("my.env-NAME 1").is_empty());
        assert_eq!(env_name("A=B").len(), 1);
        assert_eq!(env_name("").len(), 1);
        assert_eq!(env_name("\u{e4}").len(), 1);
    }

    #[test]
    fn search_paths_may_hold_underscores() {
        assert!(dns_subdomain_underscore("_tcp.a_b.local").is_empty());
        assert_eq!(dns_subdomain_underscore("A.b").len(), 1);
        assert_eq!(dns_subdomain_underscore("a..b").len(), 1);
    }

    #[test]
    fn sysctls_have_dots_or_slashes() {
        assert!(is_sysctl_name("net.ipv4/conf.a_b"));
        assert!(!is_sysctl_name("net..x"));
    }
}
