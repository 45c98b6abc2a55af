//! The node authorizer: a node may act on itself and on the pods bound to it, and read the objects those pods
//! refer to. Which pods it may write is decided by NodeRestriction (`admission/node_restriction.rs`) on the
//! object stored at the moment of the write; at authorization the body has not arrived, and a pod may still
//! be created or replaced. Unlike in stock, a node may list all Nodes, Services, EndpointSlices and
//! Namespaces: overlay, service proxy and DNS run with the node's identity.

use serde_json::Value;

use super::{Attributes, Decision};
use crate::registry::{Registry, Target, key, metadata, object};

const READ: [&str; 3] = ["get", "list", "watch"];

/// Decides whether the node called `node` may take an action.
pub fn decide(node: &str, asked: &Attributes<'_>, registry: &Registry) -> Decision {
    let reads = READ.contains(&asked.verb);
    match (asked.group, asked.resource, asked.subresource) {
        ("", "nodes", "") => own_node(node, asked, reads || asked.verb == "create"),
        ("", "nodes", "status") => own_node(node, asked, asked.verb == "get"),
        ("", "pods", _) => pods(node, asked, registry),
        ("", "secrets" | "configmaps" | "persistentvolumeclaims", "") if reads => {
            referenced(node, asked, registry)
        }
        ("", "serviceaccounts", "token") if asked.verb == "create" => account(node, asked, registry),
        ("", "serviceaccounts", "") if asked.verb == "get" => account(node, asked, registry),
        ("", "services" | "endpoints" | "namespaces", "") | ("discovery.k8s.io", "endpointslices", "")
            if reads =>
        {
            Decision::allow()
        }
        ("node.k8s.io", "runtimeclasses", "") | ("storage.k8s.io", _, "") if reads => Decision::allow(),
        ("" | "events.k8s.io", "events", "") if matches!(asked.verb, "create" | "patch" | "update") => {
            Decision::allow()
        }
        ("coordination.k8s.io", "leases", "") => lease(node, asked),
        _ => Decision::default(),
    }
}

fn own_node(node: &str, asked: &Attributes<'_>, open: bool) -> Decision {
    if open {
        return Decision::allow();
    }
    match asked.verb {
        "update" | "patch" | "delete" if asked.name == node => Decision::allow(),
        "update" | "patch" | "delete" => {
            Decision::deny(format!("node {node:?} is not allowed to modify node {:?}", asked.name))
        }
        _ => Decision::default(),
    }
}

fn lease(node: &str, asked: &Attributes<'_>) -> Decision {
    if asked.namespace != "kube-node-lease" {
        return Decision::deny("can only access leases in the \"kube-node-lease\" system namespace");
    }
    let allowed = match asked.verb {
        "create" => asked.name.is_empty() || asked.name == node,
        "get" | "update" | "patch" | "delete" => asked.name == node,
        _ => false,
    };
    if allowed {
        Decision::allow()
    } else {
        Decision::deny("can only access node lease with the same name as the requesting node")
    }
}

fn pods(node: &str, asked: &Attributes<'_>, registry: &Registry) -> Decision {
    match (asked.subresource, asked.verb) {
        ("", "list" | "watch") => {
            if asked.pinned("spec.nodeName").as_deref() == Some(node) {
                return Decision::allow();
            }
            let pinned = asked.pinned("metadata.name");
            match pinned {
                Some(name) if !asked.namespace.is_empty() => bound(node, asked.namespace, &name, registry),
                _ => Decision::deny("can only list/watch pods with spec.nodeName field selector"),
            }
        }
        // Allowed here; `sees` checks the pod that is read, so that a missing pod gets 404 and a foreign pod
        // 403.
        ("" | "status", "get") => Decision::allow(),
        ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
            Decision::allow()
        }
        _ => Decision::default(),
    }
}

/// Allows the action where the pod exists and is bound to the node.
fn bound(node: &str, namespace: &str, name: &str, registry: &Registry) -> Decision {
    match registry.peek("", "pods", namespace, name) {
        Some(pod) if is_bound(node, &pod) => Decision::allow(),
        _ => unrelated(node),
    }
}

fn is_bound(node: &str, pod: &Value) -> bool {
    pod.pointer("/spec/nodeName").and_then(Value::as_str) == Some(node)
}

fn unrelated(node: &str) -> Decision {
    Decision::deny(format!("no relationship found between node {node:?} and this object"))
}

/// Decides whether a node that may `get` an object by name may see the object found: of pods, only those
/// bound to it.
pub fn sees(node: &str, asked: &Attributes<'_>, found: &Value) -> Decision {
    let foreign = asked.group.is_empty() && asked.resource == "pods" && !is_bound(node, found);
    if foreign { unrelated(node) } else { Decision::allow() }
}

/// Iterates over the pods of a namespace that are bound to the node.
fn pods_of<'a>(node: &'a str, namespace: &str, registry: &Registry) -> impl Iterator<Item = Value> + use<'a> {
    let kind = proto_api::kinds::by_resource("", "v1", "pods");
    let objects = kind
        .and_then(|kind| registry.store().range(&key::prefix(kind, namespace), None, 0, None).ok())
        .map(|page| page.objects)
        .unwrap_or_default();
    let target = kind.map(|kind| Target::new(kind, ""));
    objects.into_iter().filter_map(move |o| {
        let view = object::view(&o, target?);
        (view.fields.get("spec.nodeName") == Some(node))
            .then(|| object::value(&o, o.mod_revision).ok())
            .flatten()
    })
}

fn referenced(node: &str, asked: &Attributes<'_>, registry: &Registry) -> Decision {
    let none = || unrelated(node);
    let pinned = asked.pinned("metadata.name");
    let name = if asked.verb == "get" { Some(asked.name.to_owned()) } else { pinned };
    let Some(name) = name.filter(|n| !n.is_empty()) else {
        return Decision::deny("can only read namespaced object of this type");
    };
    if asked.namespace.is_empty() {
        return none();
    }
    for pod in pods_of(node, asked.namespace, registry) {
        if refers(pod.get("spec").unwrap_or(&Value::Null), asked.resource, &name)
            || (asked.resource == "secrets" && account_refers(&pod, &name, registry))
        {
            return Decision::allow();
        }
    }
    none()
}

/// Returns whether the pod's ServiceAccount lists a secret, for pulling images or mounting.
fn account_refers(pod: &Value, secret: &str, registry: &Registry) -> bool {
    let account = pod.pointer("/spec/serviceAccountName").and_then(Value::as_str).unwrap_or("default");
    let account = registry.peek("", "serviceaccounts", metadata::text(pod, "namespace"), account);
    account.is_some_and(|account| {
        ["secrets", "imagePullSecrets"]
            .iter()
            .filter_map(|key| account.get(key).and_then(Value::as_array))
            .flatten()
            .any(|r| r.get("name").and_then(Value::as_str) == Some(secret))
    })
}

/// Returns whether anything in a pod's spec refers to an object by name.
fn refers(value: &Value, resource: &str, name: &str) -> bool {
    match value {
        Value::Array(list) => list.iter().any(|v| refers(v, resource, name)),
        Value::Object(map) => map.iter().any(|(key, inner)| {
            let named = |field: &str| inner.get(field).and_then(Value::as_str) == Some(name);
            let here = match (resource, key.as_str()) {
                ("configmaps", "configMap" | "configMapRef" | "configMapKeyRef") => named("name"),
                ("secrets", "secretRef" | "secretKeyRef") => named("name"),
                ("secrets", "secret") => named("secretName") || named("name"),
                ("secrets", "imagePullSecrets") => inner
                    .as_array()
                    .is_some_and(|l| l.iter().any(|s| s.get("name").and_then(Value::as_str) == Some(name))),
                ("persistentvolumeclaims", "persistentVolumeClaim") => named("claimName"),
                _ => false,
            };
            here || refers(inner, resource, name)
        }),
        _ => false,
    }
}

fn account(node: &str, asked: &Attributes<'_>, registry: &Registry) -> Decision {
    let uses = pods_of(node, asked.namespace, registry).any(|pod| {
        pod.pointer("/spec/serviceAccountName").and_then(Value::as_str).unwrap_or("default") == asked.name
    });
    if uses {
        return Decision::allow();
    }
    unrelated(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_found_wherever_a_pod_can_have_them() {
        let spec = json!({
            "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [{"envFrom": [{"secretRef": {"name": "from"}}]}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}]}],
            "volumes": [
                {"secret": {"secretName": "vol"}},
                {"projected": {"sources": [{"secret": {"name": "proj"}}, {"configMap": {"name": "ca"}}]}},
            ],
        });
        for name in ["pull", "from", "key", "vol", "proj"] {
            assert!(refers(&spec, "secrets", name), "{name}");
            assert!(!refers(&spec, "configmaps", name), "{name}");
        }
        assert!(refers(&spec, "configmaps", "ca"));
        assert!(!refers(&spec, "secrets", "other"));
    }
}
