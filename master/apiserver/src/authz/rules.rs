//! The rules of components that are no nodes, as tables.

use super::Attributes;

/// Verbs on resources; `*` stands for any.
#[derive(Debug)]
pub struct Rule {
    /// API groups.
    pub groups: &'static [&'static str],
    /// Resources, with `/subresource` where one is meant.
    pub resources: &'static [&'static str],
    /// Verbs.
    pub verbs: &'static [&'static str],
}

const READ: &[&str] = &["get", "list", "watch"];
const WRITE_EVENTS: &[&str] = &["create", "patch", "update"];

/// What every authenticated user may ask.
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

const EVERYTHING: &[Rule] = &[Rule { groups: &["*"], resources: &["*"], verbs: &["*"] }];

/// The rules of a component by its user name. All controllers run as one user until RBAC gives each its own.
pub fn of_user(name: &str) -> Option<&'static [Rule]> {
    match name {
        "system:kube-scheduler" => Some(SCHEDULER),
        "system:kube-controller-manager" => Some(EVERYTHING),
        _ => None,
    }
}

/// Whether any rule allows what is asked.
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
