//! What a request carries through the chain: its identity, its target, its deadline and the warnings it
//! gathers. Made by `chain.rs`; handlers and the registry read it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::request_info::RequestInfo;

/// The user a request comes from.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct UserInfo {
    /// The name, such as `system:node:a` or `alice`.
    pub name: String,
    /// Unique across time, where the authenticator knows one.
    pub uid: String,
    /// Groups, among them `system:authenticated`.
    pub groups: Vec<String>,
    /// Further facts of the authenticator.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// An authenticated user with the given groups.
    pub fn authenticated(name: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        groups.push("system:authenticated".to_owned());
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// The cluster administrator: `system:masters`.
    pub fn admin(name: impl Into<String>) -> Self {
        Self::authenticated(name, &["system:masters"])
    }

    /// A request without credentials; reaches health and version alone.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..Self::default()
        }
    }

    /// Whether the user is in a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node's name, where the user is a node.
    pub fn node_name(&self) -> Option<&str> {
        self.name.strip_prefix("system:node:").filter(|_| self.in_group("system:nodes"))
    }
}

/// In-process clients put this into a request's extensions: who they are and the term that fences them.
#[derive(Clone, Debug)]
pub struct LocalIdentity {
    /// User the client acts as.
    pub user: UserInfo,
    /// Writes are refused once this term has passed.
    pub fence: Option<u64>,
}

/// A request on its way from the filters to its handler.
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
    /// The term that fences the request's writes.
    pub fence: Option<u64>,
    /// How long the request may take in all.
    pub timeout: Duration,
    /// The client's address, where there is one.
    pub remote: Option<std::net::SocketAddr>,
    /// Whether the client takes a streamed answer compressed.
    pub gzip: bool,
    warnings: Mutex<Vec<String>>,
}

impl Context {
    /// A context without warnings.
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

    /// Adds a warning for the client, once.
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// The warnings so far.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}
