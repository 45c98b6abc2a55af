//! Rules of components other than nodes, as tables.

use proto_env::KUBELET_CLIENTS_ORGANIZATION;

use super::Attributes;
use crate::context::UserInfo;

/// Allows some verbs on some resources; `*` in a list stands for any value.
#[derive(Debug)]
pub struct Rule {
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
pub const SELF: &[Rule] = &[
    Rule {
        groups: &["authorization.k8s.io"],
        resources: &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
        verbs: &["create"],
    },
    Rule { groups: &["authentication.k8s.io"], resources: &["selfsubjectreviews"], verbs: &["create"] },
];

const SCHEDULER: &[Rule] = &[
    Rule { groups: &["", "events.k8s.io"], resources: &["events"], verbs: WRITE_EVENTS },
    Rule {
        groups: &["coordination.k8s.io"],
        resources: &["leases"],
        verbs: &["create", "get", "list", "update", "watch"],
    },
    Rule {
        groups: &[""],
        resources: &["nodes", "namespaces", "services", "replicationcontrollers"],
        verbs: READ,
    },
    Rule {
        groups: &[""],
        resources: &["persistentvolumeclaims", "persistentvolumes"],
        verbs: &["get", "list", "patch", "update", "watch"],
    },
    Rule { groups: &[""], resources: &["pods"], verbs: &["delete", "get", "list", "watch"] },
    Rule { groups: &[""], resources: &["bindings", "pods/binding"], verbs: &["create"] },
    Rule { groups: &[""], resources: &["pods/status"], verbs: &["patch", "update"] },
    Rule { groups: &["apps"], resources: &["replicasets", "statefulsets"], verbs: READ },
    Rule { groups: &["policy"], resources: &["poddisruptionbudgets"], verbs: READ },
    Rule {
        groups: &["scheduling.k8s.io", "storage.k8s.io", "resource.k8s.io"],
        resources: &["*"],
        verbs: READ,
    },
];

/// What an API server may do at a node (Kubernetes' `system:kubelet-api-admin`); nodes check their clients'
/// requests against it through the API.
const KUBELET_API: &[Rule] = &[
    Rule { groups: &[""], resources: &["nodes"], verbs: READ },
    Rule { groups: &[""], resources: &["nodes"], verbs: &["proxy"] },
    Rule {
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

const EVERYTHING: &[Rule] = &[Rule { groups: &["*"], resources: &["*"], verbs: &["*"] }];

/// Returns the rules of a component, found by its user name or, for an API server that calls nodes, by its
/// group. All controllers share one user until RBAC gives each its own.
pub fn of_user(user: &UserInfo) -> Option<&'static [Rule]> {
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
pub fn any_allows(rules: &[Rule], asked: &Attributes<'_>) -> bool {
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
