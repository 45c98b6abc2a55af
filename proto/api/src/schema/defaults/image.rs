//! Detects the tag `latest` of an image reference, which decides the default pull policy.

use std::sync::LazyLock;

use regex::Regex;

/// Returns whether a reference has the tag `latest`, explicitly or because it has neither tag nor digest. A
/// reference that does not parse has no tag.
pub(super) fn is_latest(reference: &str) -> bool {
    static REFERENCE: LazyLock<Option<Regex>> = LazyLock::new(|| {
        let label = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
        let host = format!(r"(?:{label}(?:\.{label})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?");
        let part = "[a-z0-9]+(?:(?:[.]|_|__|-+)[a-z0-9]+)*";
        let digest = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}";
        let tag = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}";
        Regex::new(&format!(
            "^(?P<name>(?:{host}/)?{part}(?:/{part})*)(?::(?P<tag>{tag}))?(?P<digest>@{digest})?$"
        ))
        .ok()
    });
    let Some(found) = REFERENCE.as_ref().and_then(|r| r.captures(reference)) else { return false };
    let name = found.name("name").map_or("", |m| m.as_str());
    let is_id = name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if name.len() > 255 || is_id {
        return false;
    }
    match (found.name("tag"), found.name("digest")) {
        (Some(tag), _) => tag.as_str() == "latest",
        (None, digest) => digest.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::is_latest;

    #[test]
    fn latest_is_named_or_meant_by_naming_nothing() {
        for latest in ["nginx", "nginx:latest", "example.com:5000/a/b", "localhost/x"] {
            assert!(is_latest(latest), "{latest}");
        }
        let digest = format!("nginx@sha256:{}", "a".repeat(64));
        for other in ["nginx:1.2", "", "UPPER_case!", digest.as_str(), "example.com/app:v1"] {
            assert!(!is_latest(other), "{other}");
        }
    }
}
