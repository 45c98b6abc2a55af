//! The table of served kinds. Adding a kind means adding a row here (and a strategy file in the API server
//! if it has rules of its own); discovery, OpenAPI, routing and decoding all read this table.

/// A set of verbs, sorted as discovery prints them.
pub type Verbs = &'static [&'static str];

const ALL: Verbs = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const NO_COLLECTION: Verbs = &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: Verbs = &["create"];
const STATUS: Verbs = &["get", "patch", "update"];
const PROXY: Verbs = &["create", "delete", "get", "patch", "update"];
const STREAM: Verbs = &["create", "get"];

/// A group, a version and a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupVersionKind {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version.
    pub version: &'static str,
    /// The kind.
    pub kind: &'static str,
}

impl GroupVersionKind {
    /// Returns `group/version`, or `version` in the core group.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }
}

/// Returns `group/version`, or `version` in the core group.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Splits an `apiVersion`: `apps/v1` -> (`apps`, `v1`), `v1` -> (``, `v1`).
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// One subresource of a kind.
#[derive(Debug)]
pub struct Subresource {
    /// The name in the URL, such as `status`.
    pub name: &'static str,
    /// Verbs of the subresource.
    pub verbs: Verbs,
    /// The kind of its request and response bodies.
    pub body: GroupVersionKind,
}

/// One served kind.
#[derive(Debug)]
pub struct Kind {
    /// Group, version and kind.
    pub gvk: GroupVersionKind,
    /// The plural resource name of URLs.
    pub resource: &'static str,
    /// The singular name.
    pub singular: &'static str,
    /// Abbreviations that kubectl accepts, such as `po`.
    pub short_names: &'static [&'static str],
    /// Groups of kinds for kubectl: kinds of `all` are shown by `kubectl get all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// The verbs of the resource itself.
    pub verbs: Verbs,
    /// Its subresources, sorted by name.
    pub subresources: &'static [Subresource],
    /// The group and version in which objects are stored (`/registry/GROUP/RESOURCE/...`): the kind's own,
    /// except for kinds served in two groups.
    pub storage: (&'static str, &'static str),
}

impl Kind {
    /// Returns the kind of a list of the kind's objects, such as `PodList`.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.gvk.kind)
    }

    /// Returns the `apiVersion` of the kind's objects.
    pub fn api_version(&self) -> String {
        self.gvk.api_version()
    }

    /// Returns the group part of storage keys: `core` for the core group.
    pub fn storage_group(&self) -> &'static str {
        if self.storage.0.is_empty() { "core" } else { self.storage.0 }
    }

    /// Returns the subresource with this name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Returns whether the resource itself has this verb.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// Returns whether objects are stored; reviews and bindings are only answered.
    pub fn stored(&self) -> bool {
        self.has_verb("get")
    }
}

const fn gvk(group: &'static str, version: &'static str, kind: &'static str) -> GroupVersionKind {
    GroupVersionKind { group, version, kind }
}

const fn sub(name: &'static str, verbs: Verbs, body: GroupVersionKind) -> Subresource {
    Subresource { name, verbs, body }
}

/// Makes the row of a namespaced kind that is stored in its own group, with all verbs and no extras. Rows
/// of the table override single fields.
const fn row(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    resource: &'static str,
    singular: &'static str,
) -> Kind {
    Kind {
        gvk: gvk(group, version, kind),
        resource,
        singular,
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        storage: (group, version),
    }
}

const SCALE: GroupVersionKind = gvk("autoscaling", "v1", "Scale");

macro_rules! subs {
    ($($name:literal $verbs:ident $group:literal $version:literal $kind:literal),* $(,)?) => {
        &[$(sub($name, $verbs, gvk($group, $version, $kind))),*]
    };
}

/// Every served kind: groups in discovery order, and kinds sorted by resource within their group.
pub static KINDS: &[Kind] = &[
    Kind { verbs: CREATE, ..row("", "v1", "Binding", "bindings", "binding") },
    Kind { short_names: &["cm"], ..row("", "v1", "ConfigMap", "configmaps", "configmap") },
    Kind { short_names: &["ep"], ..row("", "v1", "Endpoints", "endpoints", "endpoints") },
    Kind { short_names: &["ev"], ..row("", "v1", "Event", "events", "event") },
    Kind {
        short_names: &["ns"],
        namespaced: false,
        verbs: NO_COLLECTION,
        subresources: &[
            sub("finalize", &["update"], gvk("", "v1", "Namespace")),
            sub("status", STATUS, gvk("", "v1", "Namespace")),
        ],
        ..row("", "v1", "Namespace", "namespaces", "namespace")
    },
    Kind {
        short_names: &["no"],
        namespaced: false,
        subresources: subs!["proxy" PROXY "" "v1" "NodeProxyOptions", "status" STATUS "" "v1" "Node"],
        ..row("", "v1", "Node", "nodes", "node")
    },
    Kind {
        short_names: &["po"],
        categories: &["all"],
        subresources: subs![
            "attach" STREAM "" "v1" "PodAttachOptions",
            "binding" CREATE "" "v1" "Binding",
            "ephemeralcontainers" STATUS "" "v1" "Pod",
            "eviction" CREATE "policy" "v1" "Eviction",
            "exec" STREAM "" "v1" "PodExecOptions",
            "log" GET "" "v1" "Pod",
            "portforward" STREAM "" "v1" "PodPortForwardOptions",
            "proxy" PROXY "" "v1" "PodProxyOptions",
            "resize" STATUS "" "v1" "Pod",
            "status" STATUS "" "v1" "Pod",
        ],
        ..row("", "v1", "Pod", "pods", "pod")
    },
    row("", "v1", "PodTemplate", "podtemplates", "podtemplate"),
    row("", "v1", "Secret", "secrets", "secret"),
    Kind {
        short_names: &["sa"],
        subresources: subs!["token" CREATE "authentication.k8s.io" "v1" "TokenRequest"],
        ..row("", "v1", "ServiceAccount", "serviceaccounts", "serviceaccount")
    },
    Kind {
        short_names: &["svc"],
        categories: &["all"],
        subresources: subs!["proxy" PROXY "" "v1" "ServiceProxyOptions", "status" STATUS "" "v1" "Service"],
        ..row("", "v1", "Service", "services", "service")
    },
    Kind {
        short_names: &["ds"],
        categories: &["all"],
        subresources: subs!["status" STATUS "apps" "v1" "DaemonSet"],
        ..row("apps", "v1", "DaemonSet", "daemonsets", "daemonset")
    },
    Kind {
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[sub("scale", STATUS, SCALE), sub("status", STATUS, gvk("apps", "v1", "Deployment"))],
        ..row("apps", "v1", "Deployment", "deployments", "deployment")
    },
    Kind {
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[sub("scale", STATUS, SCALE), sub("status", STATUS, gvk("apps", "v1", "ReplicaSet"))],
        ..row("apps", "v1", "ReplicaSet", "replicasets", "replicaset")
    },
    Kind {
        short_names: &["ev"],
        storage: ("", "v1"),
        ..row("events.k8s.io", "v1", "Event", "events", "event")
    },
    Kind {
        namespaced: false,
        verbs: CREATE,
        ..row("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", "selfsubjectreview")
    },
    Kind {
        namespaced: false,
        verbs: CREATE,
        ..row(
            "authorization.k8s.io",
            "v1",
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
            "selfsubjectaccessreview",
        )
    },
    row("coordination.k8s.io", "v1", "Lease", "leases", "lease"),
    row("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", "endpointslice"),
];

const GET: Verbs = &["get"];

/// Kinds of request bodies, options and answers that are not resources, such as `DeleteOptions`.
pub static OTHER_KINDS: &[GroupVersionKind] = &[
    SCALE,
    gvk("policy", "v1", "Eviction"),
    gvk("authentication.k8s.io", "v1", "TokenRequest"),
    gvk("", "v1", "PodAttachOptions"),
    gvk("", "v1", "PodExecOptions"),
    gvk("", "v1", "PodLogOptions"),
    gvk("", "v1", "PodPortForwardOptions"),
    gvk("", "v1", "PodProxyOptions"),
    gvk("", "v1", "NodeProxyOptions"),
    gvk("", "v1", "ServiceProxyOptions"),
    gvk("meta.k8s.io", "v1", "DeleteOptions"),
    gvk("meta.k8s.io", "v1", "Status"),
    gvk("meta.k8s.io", "v1", "APIGroup"),
    gvk("meta.k8s.io", "v1", "APIGroupList"),
    gvk("meta.k8s.io", "v1", "APIResourceList"),
    gvk("meta.k8s.io", "v1", "APIVersions"),
    gvk("meta.k8s.io", "v1", "PartialObjectMetadata"),
    gvk("meta.k8s.io", "v1", "WatchEvent"),
];

/// Looks up a kind by group, version and resource.
pub fn by_resource(group: &str, version: &str, resource: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.resource == resource && k.gvk.group == group && k.gvk.version == version)
}

/// Looks up a kind by group, version and kind name.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.gvk.kind == kind && k.gvk.group == group && k.gvk.version == version)
}

/// Looks up the kind stored under `/registry/GROUP/RESOURCE`.
pub fn by_storage(group: &str, resource: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.resource == resource && k.storage_group() == group && k.storage.0 == k.gvk.group)
}

/// Returns the groups in discovery order, core (the empty name) first, each with its versions, the
/// preferred one first.
pub fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    for kind in KINDS {
        match groups.iter_mut().find(|(name, _)| *name == kind.gvk.group) {
            Some((_, versions)) if versions.contains(&kind.gvk.version) => {}
            Some((_, versions)) => versions.push(kind.gvk.version),
            None => groups.push((kind.gvk.group, vec![kind.gvk.version])),
        }
    }
    groups
}

/// Returns the kinds of a group and version, sorted by resource.
pub fn in_group_version<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Kind> + 'a {
    KINDS.iter().filter(move |k| k.gvk.group == group && k.gvk.version == version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_resource_and_by_kind() {
        let deployment = by_resource("apps", "v1", "deployments").expect("a row");
        assert_eq!(deployment.list_kind(), "DeploymentList");
        assert!(deployment.subresource("scale").is_some());
        assert_eq!(by_kind("", "v1", "Pod").expect("a row").resource, "pods");
        assert!(by_resource("apps", "v9", "deployments").is_none());
    }

    #[test]
    fn resources_are_sorted_within_their_group_and_unique() {
        for (group, versions) in groups() {
            for version in versions {
                let names: Vec<&str> = in_group_version(group, version).map(|k| k.resource).collect();
                let mut sorted = names.clone();
                sorted.sort_unstable();
                sorted.dedup();
                assert_eq!(names, sorted, "{group}/{version}");
            }
        }
    }

    #[test]
    fn both_event_groups_share_one_store() {
        let new = by_resource("events.k8s.io", "v1", "events").expect("a row");
        assert_eq!((new.storage_group(), new.storage.1), ("core", "v1"));
        assert_eq!(by_storage("core", "events").expect("a row").gvk.group, "");
    }
}
