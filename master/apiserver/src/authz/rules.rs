//! Rules of components other than nodes, as tables.

use proto_env::KUBELET_CLIENTS_ORGANIZATION;

use super::Attributes;
use crate::context::UserInfo;

/// Allows some verbs on some resources; `*` in a list stands for any value.
#[derive(Debug)]
pub struct PolicyRule {
    /// API groups to which the rule applies.
    pub groups: &'static [&'static str],
    /// Resources to which the rule applies; a subresource is written `resource/subresource`.
    pub resources: &'static [&'static str],
    /// Verbs the rule allows.
    pub verbs: &'static [&'static str],
}

const READ: &[&str] = &["get", "list", "watch"];
const WRITE_EVENTS: &[&str] = &["create", "patch", "update"];

/// Rules of every authenticated user: reviews of its own identity and permissions.
pub const SELF: &[PolicyRule] = &[
    PolicyRule {
        groups: &["authorization.k8s.io"],
        resources: &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
        verbs: &["create"],
    },
    PolicyRule { groups: &["authentication.k8s.io"], resources: &["selfsubjectreviews"], verbs: &["create"] },
];

const SCHEDULER: &[PolicyRule] = &[
    PolicyRule { groups: &["", "events.k8s.io"], resources: &["events"], verbs: WRITE_EVENTS },
    PolicyRule {
        groups: &["coordination.k8s.io"],
        resources: &["leases"],
        verbs: &["create", "get", "list", "update", "watch"],
    },
    PolicyRule {
        groups: &[""],
        resources: &["nodes", "namespaces", "services", "replicationcontrollers"],
        verbs: READ,
    },
    PolicyRule {
        groups: &[""],
        resources: &["persistentvolumeclaims", "persistentvolumes"],
        verbs: &["get", "list", "patch", "update", "watch"],
    },
    PolicyRule { groups: &[""], resources: &["pods"], verbs: &["delete", "get", "list", "watch"] },
    PolicyRule { groups: &[""], resources: &["bindings", "pods/binding"], verbs: &["create"] },
    PolicyRule { groups: &[""], resources: &["pods/status"], verbs: &["patch", "update"] },
    PolicyRule { groups: &["apps"], resources: &["replicasets", "statefulsets"], verbs: READ },
    PolicyRule { groups: &["policy"], resources: &["poddisruptionbudgets"], verbs: READ },
    PolicyRule {
        groups: &["scheduling.k8s.io", "storage.k8s.io", "resource.k8s.io"],
        resources: &["*"],
        verbs: READ,
    },
];

/// Permissions of an API server at a node (Kubernetes' role `system:kubelet-api-admin`); nodes authorize
/// their clients' requests through the API, which evaluates these rules.
const KUBELET_API: &[PolicyRule] = &[
    PolicyRule { groups: &[""], resources: &["nodes"], verbs: READ },
    PolicyRule { groups: &[""], resources: &["nodes"], verbs: &["proxy"] },
    PolicyRule {
        groups: &[""],
        resources: &[
            "nodes/checkpoint",
            "nodes/configz",
            "nodes/healthz",
            "nodes/log",
            "nodes/metrics",
            "nodes/pods",
            "nodes/proxy",
            "nodes/spec",
            "nodes/stats",
        ],
        verbs: &["*"],
    },
];

const EVERYTHING: &[PolicyRule] = &[PolicyRule { groups: &["*"], resources: &["*"], verbs: &["*"] }];

/// Returns the rules of a component, found by its user name or, for an API server that calls nodes, by its
/// group. All controllers share one user until RBAC gives each its own.
pub fn of_user(user: &UserInfo) -> Option<&'static [PolicyRule]> {
    if user.in_group(KUBELET_CLIENTS_ORGANIZATION) {
        return Some(KUBELET_API);
    }
    match user.name.as_str() {
        "system:kube-scheduler" => Some(SCHEDULER),
        "system:kube-controller-manager" => Some(EVERYTHING),
        _ => None,
    }
}

/// Returns whether any rule allows the action.
pub fn any_allows(rules: &[PolicyRule], asked: &Attributes<'_>) -> bool {
    let resource = if asked.subresource.is_empty() {
        asked.resource.to_owned()
    } else {
        format!("{}/{}", asked.resource, asked.subresource)
    };
    let has = |list: &[&str], value: &str| list.iter().any(|item| *item == "*" || *item == value);
    asked.is_resource
        && rules
            .iter()
            .any(|r| has(r.groups, asked.group) && has(r.resources, &resource) && has(r.verbs, asked.verb))
}
