//! The aggregated form: every group with its versions, resources and subresources in one document.

use proto_api::kinds::{self, GroupVersionKind, Kind};
use serde_json::{Value, json};

use super::Aggregated;

/// Returns the document of `/api` (the core group) or `/apis` (all other groups).
pub(super) fn document(core: bool, version: Aggregated) -> Value {
    let groups = kinds::groups();
    let items: Vec<Value> = groups
        .iter()
        .filter(|(name, _)| name.is_empty() == core)
        .map(|(name, versions)| group(name, versions))
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{}", version.version()),
        "metadata": {}, "items": items})
}

fn group(name: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| {
            let resources: Vec<Value> = kinds::in_group_version(name, version).map(resource).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let metadata = if name.is_empty() { json!({}) } else { json!({"name": name}) };
    json!({"metadata": metadata, "versions": versions})
}

fn kind_value(gvk: GroupVersionKind) -> Value {
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}

fn resource(kind: &'static Kind) -> Value {
    let scope = if kind.namespaced { "Namespaced" } else { "Cluster" };
    let mut out = json!({"resource": kind.resource, "responseKind": kind_value(kind.gvk), "scope": scope,
        "singularResource": kind.singular, "verbs": kind.verbs});
    if !kind.short_names.is_empty() {
        out["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        out["categories"] = json!(kind.categories);
    }
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|sub| json!({"subresource": sub.name, "responseKind": kind_value(sub.body), "verbs": sub.verbs}))
        .collect();
    if !subresources.is_empty() {
        out["subresources"] = Value::Array(subresources);
    }
    out
}
