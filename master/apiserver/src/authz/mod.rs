//! Authorization: a fixed authorizer, used until RBAC's kinds exist. `system:masters` may do everything,
//! components what their rules list, a node whatever concerns itself and its pods; ServiceAccounts may ask
//! about themselves. `chain.rs` authorizes each request once; access reviews use the same authorizer.

mod node;
mod rules;

use proto_api::selector::FieldSelector;
use proto_api::status::Status;
use serde_json::Value;

use crate::context::{Context, UserInfo};
use crate::registry::Registry;

/// An action that a user wants to take, as the authorizer sees it.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// User who sent the request.
    pub user: &'a UserInfo,
    /// Verb, such as `get`; for a path that names no resource, the HTTP method in lower case.
    pub verb: &'a str,
    /// API group of the resource; empty for the core group.
    pub group: &'a str,
    /// Plural name of the resource, such as `pods`.
    pub resource: &'a str,
    /// Subresource, such as `status`; empty for the object itself.
    pub subresource: &'a str,
    /// Namespace; empty for all namespaces and for cluster-scoped resources.
    pub namespace: &'a str,
    /// Name of the object; empty for a whole collection.
    pub name: &'a str,
    /// URL path of the request; it is what is authorized if the request names no resource.
    pub path: &'a str,
    /// Whether the path names a resource, and not something like `/version`.
    pub is_resource: bool,
    /// The field selector of a list or watch, unparsed.
    pub field_selector: &'a str,
}

/// Decision of an authorizer about an action.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Decision {
    /// Whether the user may act.
    pub allowed: bool,
    /// Reason for a refusal, for people; empty where there is no specific reason.
    pub reason: String,
}

impl Decision {
    fn allow() -> Self {
        Self { allowed: true, reason: String::new() }
    }

    fn deny(reason: impl Into<String>) -> Self {
        Self { allowed: false, reason: reason.into() }
    }
}

impl<'a> Attributes<'a> {
    /// Returns the attributes of a request; the caller sets the field selector.
    pub fn of(ctx: &'a Context) -> Self {
        let info = &ctx.info;
        Self {
            user: &ctx.user,
            verb: &info.verb,
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            path: &info.path,
            is_resource: info.is_resource,
            field_selector: "",
        }
    }

    /// Returns the one value to which the field selector of a list or watch restricts a field; `None` for no
    /// such value.
    fn pinned(&self, field: &str) -> Option<String> {
        let selector = FieldSelector::parse(self.field_selector).ok()?;
        selector.exact(field).map(str::to_owned)
    }

    /// Returns the 403 answer, worded as Kubernetes words it.
    pub fn forbidden(&self, decision: &Decision) -> Status {
        let user = &self.user.name;
        let because =
            if decision.reason.is_empty() { String::new() } else { format!(": {}", decision.reason) };
        if !self.is_resource {
            let why = format!("User {user:?} cannot {} path {:?}{because}", self.verb, self.path);
            return Status::forbidden("", "", "", why);
        }
        let resource = if self.subresource.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        };
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        let why = format!(
            "User {user:?} cannot {} resource {resource:?} in API group {:?} {scope}{because}",
            self.verb, self.group
        );
        Status::forbidden(self.group, self.resource, self.name, why)
    }
}

/// Returns whether anyone may read the path: health checks for load balancers and a client's first requests.
fn is_open(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    path == "/version"
        || ["/healthz", "/livez", "/readyz"]
            .iter()
            .any(|open| path == *open || path.strip_prefix(open).is_some_and(|rest| rest.starts_with('/')))
}

/// Returns whether every authenticated user may read the path: discovery and related documents.
fn is_discovery(path: &str) -> bool {
    let roots = ["/api", "/apis", "/openapi", "/.well-known/openid-configuration", "/openid/v1/jwks"];
    path == "/" || roots.iter().any(|root| path == *root || path.starts_with(&format!("{root}/")))
}

/// The authorizer with built-in rules; it has no state.
#[derive(Clone, Copy, Debug, Default)]
pub struct Authorizer;

impl Authorizer {
    /// Decides from the objects of the local replica, which may lag behind the leader.
    pub fn authorize(&self, asked: &Attributes<'_>, registry: &Registry) -> Decision {
        if asked.user.in_group("system:masters") {
            return Decision::allow();
        }
        let reads = matches!(asked.verb, "get" | "head");
        if !asked.is_resource && reads && is_open(asked.path) {
            return Decision::allow();
        }
        if !asked.user.in_group("system:authenticated") {
            return Decision::default();
        }
        if !asked.is_resource && reads && is_discovery(asked.path) {
            return Decision::allow();
        }
        if asked.is_resource && rules::any_allows(rules::SELF, asked) {
            return Decision::allow();
        }
        if let Some(node) = asked.user.node_name() {
            return node::decide(node, asked, registry);
        }
        let allowed = rules::of_user(asked.user).is_some_and(|rules| rules::any_allows(rules, asked));
        Decision { allowed, reason: String::new() }
    }

    /// Checks that a user who may `get` by name may see the object that was found under it.
    ///
    /// # Errors
    ///
    /// 403 for a pod of another node.
    pub fn check_found(&self, asked: &Attributes<'_>, found: &Value) -> Result<(), Status> {
        let Some(node) = asked.user.node_name() else { return Ok(()) };
        let decision = node::sees(node, asked, found);
        if decision.allowed { Ok(()) } else { Err(asked.forbidden(&decision)) }
    }

    /// Returns whether a lagging replica may have caused a refusal, so that it must be repeated after a read
    /// barrier.
    pub fn depends_on_state(&self, asked: &Attributes<'_>) -> bool {
        asked.is_resource && asked.user.node_name().is_some()
    }
}
