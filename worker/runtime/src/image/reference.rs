//! Image names: the short form `nginx` means `docker.io/library/nginx:latest`.
//!
//! Follows the grammar of the distribution project and containerd's normalization: of a name with tag and
//! digest only the digest is kept.

use std::fmt;
use std::str::FromStr;

/// A full image name. `Display` gives the canonical form in which names are stored and compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    Tag(String),
    Digest(String),
}

/// The text is not a valid image name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to parse image reference \"{text}\": {reason}")]
pub struct InvalidReference {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// Returns the registry's host, with its port if it has one.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Returns the path of the repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the tag; `None` for a name by digest.
    pub fn tag(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(tag) => Some(tag),
            Version::Digest(_) => None,
        }
    }

    /// Returns the digest; `None` for a name by tag.
    pub fn digest(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(_) => None,
            Version::Digest(digest) => Some(digest),
        }
    }

    /// Returns registry and repository, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.domain, self.path),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.domain, self.path),
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| InvalidReference { text: text.to_owned(), reason })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let slash = rest.rfind('/').map_or(0, |i| i + 1);
    let (name, tag) = match rest[slash..].find(':') {
        Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
        None => (rest, None),
    };
    let (domain, path) = split_domain(name);
    if path.is_empty() || name.len() > 255 || !path.split('/').all(is_path_component) {
        return Err("invalid reference format");
    }
    if !is_domain(&domain) {
        return Err("invalid registry host");
    }
    if let Some(tag) = tag
        && !is_tag(tag)
    {
        return Err("invalid tag format");
    }
    let version = match digest {
        Some(digest) if is_digest(digest) => Version::Digest(digest.to_owned()),
        Some(_) => return Err("invalid checksum digest format"),
        None => Version::Tag(tag.unwrap_or("latest").to_owned()),
    };
    Ok(Reference { domain, path, version })
}

fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => ("docker.io", name),
    };
    let domain = if domain == "index.docker.io" { "docker.io" } else { domain };
    let library = domain == "docker.io" && !path.is_empty() && !path.contains('/');
    (domain.to_owned(), if library { format!("library/{path}") } else { path.to_owned() })
}

fn is_domain(text: &str) -> bool {
    if let Some((address, rest)) = text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        let port = rest.is_empty() || rest.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok());
        return port && address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let port = port.is_none_or(|p| p.parse::<u16>().is_ok());
    port && !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
}

fn is_path_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators: Vec<&str> = text.split(alphanumeric).filter(|s| !s.is_empty()).collect();
    let edges = text.starts_with(alphanumeric) && text.ends_with(alphanumeric);
    edges && separators.iter().all(|s| matches!(*s, "." | "_" | "__") || s.chars().all(|c| c == '-'))
}

fn is_tag(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128 && text.starts_with(word) && text.chars().all(|c| word(c) || matches!(c, '.' | '-'))
}

/// Returns whether `text` is a digest, `sha256:` and 64 lower-case hexadecimal digits; no
/// other algorithm is supported.
pub(crate) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> String {
        text.parse::<Reference>().map_or_else(|e| e.to_string(), |r| r.to_string())
    }

    #[test]
    fn names_are_completed_as_containerd_does() {
        assert_eq!(full("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(full("library/nginx:1"), "docker.io/library/nginx:1");
        assert_eq!(
            full("registry.k8s.io/e2e-test-images/agnhost:2.59"),
            "registry.k8s.io/e2e-test-images/agnhost:2.59"
        );
        assert_eq!(full("localhost:5000/a/b"), "localhost:5000/a/b:latest");
        assert_eq!(full("ephor.test/web:1"), "ephor.test/web:1");
        assert_eq!(full("index.docker.io/x"), "docker.io/library/x:latest");
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(full(&format!("x:1@{digest}")), format!("docker.io/library/x@{digest}"));
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for text in ["", "UPPER/lower:1/x", "a//b", "x:", "x@sha256:12", "-x", "x/../y", "a:b:c/d", "x y"] {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was accepted");
        }
    }
}
