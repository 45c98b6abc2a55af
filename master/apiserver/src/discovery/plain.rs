//! The plain form: `APIVersions`, `APIGroupList`, `APIGroup`, `APIResourceList`.

use proto_api::kinds::{self, Kind, Subresource};
use serde_json::{Map, Value, json};

use super::storage_version_hash;

/// Returns the `APIVersions` document of `/api`.
pub(super) fn versions(server_address: &str) -> Value {
    let addresses = json!([{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]);
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses})
}

fn group_value(name: &str, versions: &[&str]) -> Map<String, Value> {
    let version = |v: &str| json!({"groupVersion": format!("{name}/{v}"), "version": v});
    let all: Vec<Value> = versions.iter().map(|v| version(v)).collect();
    let preferred = versions.first().map(|v| version(v)).unwrap_or_default();
    let mut out = Map::new();
    out.insert("name".into(), json!(name));
    out.insert("versions".into(), Value::Array(all));
    out.insert("preferredVersion".into(), preferred);
    out
}

/// Returns the `APIGroupList` document of `/apis`.
pub(super) fn groups() -> Value {
    let groups = kinds::groups();
    let named = groups.iter().filter(|(name, _)| !name.is_empty());
    let list: Vec<Value> = named.map(|(name, versions)| Value::Object(group_value(name, versions))).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
}

/// Returns the `APIGroup` document of `/apis/GROUP`; `None` for an unknown group.
pub(super) fn group(name: &str) -> Option<Value> {
    let groups = kinds::groups();
    let (name, versions) = groups.iter().find(|(n, _)| *n == name && !n.is_empty())?;
    let mut out = group_value(name, versions);
    out.insert("kind".into(), json!("APIGroup"));
    out.insert("apiVersion".into(), json!("v1"));
    Some(Value::Object(out))
}

/// Returns the `APIResourceList` of `/api/VERSION` or `/apis/GROUP/VERSION`; `None` for an unknown group or
/// version.
pub(super) fn resources(group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for kind in kinds::in_group_version(group, version) {
        list.push(resource(kind));
        list.extend(kind.subresources.iter().map(|sub| subresource(kind, sub)));
    }
    if list.is_empty() {
        return None;
    }
    let group_version = kinds::api_version(group, version);
    let mut out = json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": list});
    // Stock leaves the field out for the core group, whose list is older than the field.
    if !group.is_empty() {
        out["apiVersion"] = json!("v1");
    }
    Some(out)
}

fn resource(kind: &Kind) -> Value {
    let mut out = json!({"name": kind.resource, "singularName": kind.singular, "namespaced": kind.namespaced,
        "kind": kind.gvk.kind, "verbs": kind.verbs});
    if !kind.short_names.is_empty() {
        out["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        out["categories"] = json!(kind.categories);
    }
    if kind.stored() {
        out["storageVersionHash"] = storage_version_hash(kind.storage.0, kind.storage.1, kind.gvk.kind);
    }
    out
}

fn subresource(kind: &Kind, sub: &Subresource) -> Value {
    let mut out = json!({"name": format!("{}/{}", kind.resource, sub.name), "singularName": "",
        "namespaced": kind.namespaced, "kind": sub.body.kind, "verbs": sub.verbs});
    if (sub.body.group, sub.body.version) != (kind.gvk.group, kind.gvk.version) {
        out["group"] = json!(sub.body.group);
        out["version"] = json!(sub.body.version);
    }
    out
}
