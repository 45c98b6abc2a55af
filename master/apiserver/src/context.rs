//! State of a request in the filter chain: its user, its target, its deadline and the warnings gathered so
//! far. `chain.rs` creates it; handlers and the registry read it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::request_info::RequestInfo;

/// Maximum number of warnings that are kept: more than ever fit into an answer's headers (`chain.rs`).
const MAX_WARNINGS: usize = 512;

/// The user a request comes from.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct UserInfo {
    /// User name, such as `system:node:a` or `alice`.
    pub name: String,
    /// Id that is never reused; empty where the authenticator knows none.
    pub uid: String,
    /// Groups of the user; every authenticated user is in `system:authenticated`.
    pub groups: Vec<String>,
    /// Further attributes set by the authenticator.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// Returns an authenticated user with the given groups.
    pub fn authenticated(name: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        groups.push("system:authenticated".to_owned());
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// Returns a cluster administrator, a member of `system:masters`.
    pub fn admin(name: impl Into<String>) -> Self {
        Self::authenticated(name, &["system:masters"])
    }

    /// Returns the user of a request without credentials, who may read only health and version.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..Self::default()
        }
    }

    /// Returns whether the user is in a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// Returns the node's name where the user is a node.
    pub fn node_name(&self) -> Option<&str> {
        self.name.strip_prefix("system:node:").filter(|_| self.in_group("system:nodes"))
    }
}

/// Identity of an in-process client, which puts it into the request's extensions.
#[derive(Clone, Debug)]
pub struct LocalIdentity {
    /// User the client acts as.
    pub user: UserInfo,
    /// Term after which the client's writes are refused; `None` for no fence.
    pub fence: Option<u64>,
}

/// State of one request, which filters fill and handlers read.
#[derive(Debug)]
pub struct Context {
    /// User the request comes from.
    pub user: UserInfo,
    /// Verb and target of the request.
    pub info: RequestInfo,
    /// Query of the URL, still encoded.
    pub query: String,
    /// `Audit-Id` of the request and its answer.
    pub audit_id: String,
    /// Term after which the request's writes are refused; `None` for no fence.
    pub fence: Option<u64>,
    /// Longest time the request may take in all.
    pub timeout: Duration,
    /// The client's address; `None` for an in-process client.
    pub remote: Option<std::net::SocketAddr>,
    /// Whether the client accepts a streamed answer compressed with gzip.
    pub gzip: bool,
    warnings: Mutex<Vec<String>>,
}

impl Context {
    /// Creates a context without warnings.
    pub fn new(
        user: UserInfo,
        info: RequestInfo,
        query: String,
        audit_id: String,
        timeout: Duration,
    ) -> Self {
        Self {
            user,
            info,
            query,
            audit_id,
            fence: None,
            timeout,
            remote: None,
            gzip: false,
            warnings: Mutex::default(),
        }
    }

    /// Adds a warning for the client unless the same text was added before, or too many were.
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if warnings.len() < MAX_WARNINGS && !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// Takes the warnings gathered so far.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_kept_once_and_no_more_than_an_answer_holds() {
        let info = RequestInfo::default();
        let ctx = Context::new(UserInfo::default(), info, String::new(), String::new(), Duration::ZERO);
        for i in 0..20_000 {
            ctx.warn(format!("warning {}", i / 2));
        }
        let kept = ctx.take_warnings();
        assert_eq!((kept.len(), kept[0].as_str(), kept[511].as_str()), (512, "warning 0", "warning 511"));
    }
}
