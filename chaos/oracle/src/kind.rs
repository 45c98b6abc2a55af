//! Kinds of objects that clients work on: where each is served and stored, and how an object carries a
//! client's value. `calls.rs` makes requests of it, `stream.rs` reads watches with it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::history::Versioned;

/// First node port that clients ask for.
const FIRST_PORT: u32 = 30_000;
/// Number of node ports that clients ask for: few, so that Services compete for them.
const PORTS: u32 = 24;

/// A kind of objects in a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// ConfigMap, with the value in its data.
    #[default]
    ConfigMap,
    /// Secret, with the value in an annotation.
    Secret,
    /// Lease, of another API group, with the value in an annotation. A PUT may create it.
    Lease,
    /// Service with a node port, with the value in an annotation. A PUT may create it. Its address and its
    /// port are objects of their own, which one transaction writes together with the Service.
    Service,
}

impl Kind {
    /// All kinds.
    pub const ALL: &[Self] = &[Self::ConfigMap, Self::Secret, Self::Lease, Self::Service];

    /// Returns the name of the resource in paths and keys.
    fn resource(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
            Self::Lease => "leases",
            Self::Service => "services",
        }
    }

    fn group(self) -> &'static str {
        match self {
            Self::Lease => "coordination.k8s.io",
            Self::ConfigMap | Self::Secret | Self::Service => "",
        }
    }

    /// Returns the API path of the objects of a namespace.
    pub fn collection(self, namespace: &str) -> String {
        let api = match self.group() {
            "" => "/api".to_owned(),
            group => format!("/apis/{group}"),
        };
        format!("{api}/v1/namespaces/{namespace}/{}", self.resource())
    }

    /// Returns the prefix of the store's keys of the objects of a namespace.
    pub fn store_prefix(self, namespace: &str) -> String {
        let group = if self.group().is_empty() { "core" } else { self.group() };
        format!("/registry/{group}/{}/{namespace}/", self.resource())
    }

    /// Returns the key in the history of the object with this name: the name itself for a ConfigMap, with
    /// the resource before it for other kinds.
    pub fn key(self, name: &str) -> String {
        match self {
            Self::ConfigMap => name.to_owned(),
            kind => format!("{}/{name}", kind.resource()),
        }
    }

    /// Returns the kind of the object with this key.
    pub fn of(key: &str) -> Self {
        let resource = key.split_once('/').map_or("configmaps", |(resource, _)| resource);
        Self::ALL.iter().copied().find(|kind| kind.resource() == resource).unwrap_or_default()
    }

    /// Returns the name of the object with this key.
    pub fn name(key: &str) -> &str {
        key.split_once('/').map_or(key, |(_, name)| name)
    }

    /// Returns whether an update of an object that does not exist may create it.
    pub fn creates_on_update(self) -> bool {
        matches!(self, Self::Lease | Self::Service)
    }

    /// Returns the part of an object that carries a value, as a merge patch of it.
    pub fn patch(self, value: &str) -> Value {
        match self {
            Self::ConfigMap => json!({"data": {"v": value}}),
            _ => json!({"metadata": {"annotations": {"v": value}}}),
        }
    }

    /// Returns an object without a version that carries a value.
    pub fn object(self, name: &str, value: &str) -> Value {
        let annotated = |version: &str, kind: &str| {
            json!({
                "apiVersion": version, "kind": kind,
                "metadata": {"name": name, "annotations": {"v": value}},
            })
        };
        match self {
            Self::ConfigMap => json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"v": value},
            }),
            Self::Secret => annotated("v1", "Secret"),
            Self::Lease => annotated("coordination.k8s.io/v1", "Lease"),
            Self::Service => {
                let mut service = annotated("v1", "Service");
                let port = FIRST_PORT + value.bytes().map(u32::from).sum::<u32>() % PORTS;
                service["spec"] = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
                service
            }
        }
    }

    /// Returns the value that an object carries; `None` if it carries none.
    pub fn value(self, object: &Value) -> Option<&str> {
        match self {
            Self::ConfigMap => object["data"]["v"].as_str(),
            _ => object["metadata"]["annotations"]["v"].as_str(),
        }
    }

    /// Returns the version and value of an object in an answer; `None` if it has none.
    pub fn versioned(self, object: &Value) -> Option<Versioned> {
        let revision = object["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
        Some(Versioned { revision, value: self.value(object)?.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_kind_and_name() {
        for kind in Kind::ALL {
            let key = kind.key("reg-1");
            assert_eq!((Kind::of(&key), Kind::name(&key)), (*kind, "reg-1"));
            let object = kind.object("reg-1", "4-7");
            assert_eq!(kind.value(&object), Some("4-7"));
            assert_eq!(kind.value(&kind.patch("4-8")), Some("4-8"));
            assert_eq!(object["metadata"]["name"], "reg-1");
        }
        assert_eq!(Kind::ConfigMap.collection("a"), "/api/v1/namespaces/a/configmaps");
        assert_eq!(Kind::Lease.collection("a"), "/apis/coordination.k8s.io/v1/namespaces/a/leases");
        assert_eq!(Kind::Lease.store_prefix("a"), "/registry/coordination.k8s.io/leases/a/");
    }
}
