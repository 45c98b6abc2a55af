//! NodeRestriction: limits the writes of a node, as Kubernetes' plugin of that name does: to its own Node
//! without taints, owners and labels that steer pods, mirror pods and status of pods bound to it, its own
//! Lease, and tokens for pods bound to it. Unlike Kubernetes' plugin it also refuses a node that sets its own
//! podCIDR, since only the master assigns addresses and the overlay routes by the Node's podCIDR.

use proto_api::node_labels::may_be_set_by_node;
use proto_api::status::Status;
use serde_json::Value;

use super::{Attributes, mirror_pod};
use crate::json_fields::{self, JsonFields, same};
use crate::object_lookup::ObjectLookup;

/// Namespace of node Leases.
const LEASES: &str = "kube-node-lease";

/// Checks an object that a node creates.
///
/// # Errors
///
/// 403 with the reason; 404 where the node that a mirror pod names is not there.
pub async fn check_create(
    objects: &dyn ObjectLookup,
    attributes: &Attributes<'_>,
    obj: &Value,
) -> Result<(), Status> {
    let Some(node) = attributes.user.node_name() else { return Ok(()) };
    match (attributes.group, attributes.resource) {
        ("", "pods") => check_mirror_pod(objects, attributes, node, obj).await,
        ("", "nodes") => check_own_node(attributes, node, obj, &Value::Null),
        ("coordination.k8s.io", "leases") => check_lease(attributes, node, json_fields::name(obj)),
        _ => Ok(()),
    }
}

/// Checks the object with which a node replaces `old`.
///
/// # Errors
///
/// 403 with the reason.
pub fn check_update(attributes: &Attributes<'_>, new: &Value, old: &Value) -> Result<(), Status> {
    let Some(node) = attributes.user.node_name() else { return Ok(()) };
    match (attributes.group, attributes.resource) {
        ("", "pods") => check_pod_update(attributes, node, new, old),
        ("", "nodes") => check_own_node(attributes, node, new, old),
        ("coordination.k8s.io", "leases") => check_lease(attributes, node, json_fields::name(old)),
        _ => Ok(()),
    }
}

/// Checks whether a node may delete or evict an object.
///
/// # Errors
///
/// 403 with the reason.
pub fn check_delete(attributes: &Attributes<'_>, name: &str, old: &Value) -> Result<(), Status> {
    let Some(node) = attributes.user.node_name() else { return Ok(()) };
    match (attributes.group, attributes.resource) {
        ("", "pods") if is_bound(old, node) => Ok(()),
        ("", "pods") if attributes.subresource == "eviction" => {
            let why = format!("node {node} can only evict pods with spec.nodeName set to itself");
            Err(attributes.forbidden(name, why))
        }
        ("", "pods") => {
            let why = format!("node {node:?} can only delete pods with spec.nodeName set to itself");
            Err(attributes.forbidden(name, why))
        }
        ("", "nodes") if name != node => Err(not_own_node(attributes, node, name)),
        ("coordination.k8s.io", "leases") => check_lease(attributes, node, name),
        _ => Ok(()),
    }
}

/// Checks a TokenRequest for the ServiceAccount called `account`: a token for a node must be bound to a pod
/// on that node, for an audience that the pod asks for.
///
/// # Errors
///
/// 403 with the reason for a token that the node may not have; 404 if the pod does not exist.
pub async fn check_token_request(
    objects: &dyn ObjectLookup,
    attributes: &Attributes<'_>,
    account: &str,
    request: &Value,
) -> Result<(), Status> {
    let Some(node) = attributes.user.node_name() else { return Ok(()) };
    let refuse = |why: String| Err(attributes.forbidden(account, why));
    let spec = request.sub("spec");
    let bound = spec.sub("boundObjectRef");
    let (pod_name, uid) = (bound.text("name"), bound.text("uid"));
    if bound.text("apiVersion") != "v1" || bound.text("kind") != "Pod" || pod_name.is_empty() {
        return refuse("node requested token not bound to a pod".to_owned());
    }
    if uid.is_empty() {
        return refuse("node requested token with a pod binding without a uid".to_owned());
    }
    let Some(pod) = objects.find("pods", attributes.namespace, pod_name).await? else {
        return Err(Status::not_found("", "pods", pod_name));
    };
    if pod.sub("metadata").text("uid") != uid {
        return refuse(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        ));
    }
    if !is_bound(&pod, node) {
        return refuse("node requested token bound to a pod scheduled on a different node".to_owned());
    }
    let audiences = spec.texts("audiences");
    let audience = match audiences.as_slice() {
        [] => "",
        [one] => *one,
        _ => return refuse("node may only request 0 or 1 audiences".to_owned()),
    };
    if !asks_for_audience(&pod, audience) {
        let user = &attributes.user.name;
        return refuse(format!("{user} is not authorized to request tokens for audience {audience:?}"));
    }
    Ok(())
}

/// Returns whether a volume of the pod projects a token for the audience; empty means the API server's
/// audience.
fn asks_for_audience(pod: &Value, audience: &str) -> bool {
    let sources = pod.sub("spec").items("volumes").iter().flat_map(|v| v.sub("projected").items("sources"));
    sources.filter_map(|s| s.at("serviceAccountToken")).any(|token| token.text("audience") == audience)
}

fn is_bound(pod: &Value, node: &str) -> bool {
    pod.sub("spec").text("nodeName") == node
}

async fn check_mirror_pod(
    objects: &dyn ObjectLookup,
    attributes: &Attributes<'_>,
    node: &str,
    pod: &Value,
) -> Result<(), Status> {
    let refuse = |why: String| Err(attributes.forbidden(json_fields::name(pod), why));
    if !mirror_pod::is_mirror(pod) {
        return refuse(format!(
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
        ));
    }
    if !is_bound(pod, node) {
        return refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owner = match pod.sub("metadata").items("ownerReferences") {
        [owner] => owner,
        [] => {
            return refuse(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            ));
        }
        _ => {
            let why =
                format!("node {node:?} can only create pods with a single owner reference set to itself");
            return refuse(why);
        }
    };
    if (owner.text("apiVersion"), owner.text("kind"), owner.text("name")) != ("v1", "Node", node) {
        return refuse(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if !owner.flag("controller") {
        return refuse(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        ));
    }
    if owner.flag("blockOwnerDeletion") {
        return refuse(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let Some(stored) = objects.find("nodes", "", node).await? else {
        return Err(Status::not_found("", "nodes", node));
    };
    let (uid, known) = (owner.text("uid"), stored.sub("metadata").text("uid"));
    if uid != known {
        return refuse(format!("node {node} UID mismatch: expected {uid} got {known}"));
    }
    match mirror_pod::api_reference(pod) {
        Some(what) => refuse(format!("node {node:?} can not create pods that reference {what}")),
        None => Ok(()),
    }
}

fn check_pod_update(attributes: &Attributes<'_>, node: &str, new: &Value, old: &Value) -> Result<(), Status> {
    let refuse = |why: String| Err(attributes.forbidden(json_fields::name(old), why));
    match attributes.subresource {
        "status" => {}
        "" => {
            return refuse(format!(
                "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
            ));
        }
        other => {
            return refuse(format!(
                "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
            ));
        }
    }
    if !is_bound(old, node) {
        let why =
            format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself");
        return refuse(why);
    }
    if !same(new.sub("metadata").sub("labels"), old.sub("metadata").sub("labels")) {
        return refuse(format!("node {node:?} cannot update labels through pod status"));
    }
    let changed = |key: &str| !same(new.sub("status").sub(key), old.sub("status").sub(key));
    for (key, what) in [
        ("resourceClaimStatuses", "resource claim statues"),
        ("extendedResourceClaimStatus", "extended resource claim status"),
        ("nodeAllocatableResourceClaimStatuses", "node allocatable resource claim statuses"),
    ] {
        if changed(key) {
            return refuse(format!("node {node:?} cannot update {what}"));
        }
    }
    Ok(())
}

fn not_own_node(attributes: &Attributes<'_>, node: &str, name: &str) -> Status {
    attributes.forbidden(name, format!("node {node:?} is not allowed to modify node {name:?}"))
}

/// Checks a write of a node to its own Node; `old` is null for a new one.
fn check_own_node(attributes: &Attributes<'_>, node: &str, new: &Value, old: &Value) -> Result<(), Status> {
    let name = json_fields::name(new);
    if name != node {
        return Err(not_own_node(attributes, node, name));
    }
    let created = old.is_null();
    let refuse = |why: String| Err(attributes.forbidden(name, why));
    let (spec, before) = (new.sub("spec"), old.sub("spec"));
    if created && spec.has("configSource") {
        return refuse(format!("node {node:?} is not allowed to create pods with a non-nil configSource"));
    }
    if spec.has("configSource") && !same(spec.sub("configSource"), before.sub("configSource")) {
        return refuse(format!(
            "node {node:?} is not allowed to update configSource to a new non-nil configSource"
        ));
    }
    if !created && !same(spec.sub("taints"), before.sub("taints")) {
        return refuse(format!("node {node:?} is not allowed to modify taints"));
    }
    let owners = |obj: &Value| obj.sub("metadata").sub("ownerReferences").clone();
    if !created && !same(&owners(new), &owners(old)) {
        return refuse(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    if spec.text("podCIDR") != before.text("podCIDR") || !same(spec.sub("podCIDRs"), before.sub("podCIDRs")) {
        return refuse(format!("node {node:?} is not allowed to modify podCIDRs"));
    }
    let forbidden = forbidden_labels(new, old).join(", ");
    match (forbidden.is_empty(), created) {
        (true, _) => Ok(()),
        (false, true) => {
            refuse(format!("node {node:?} is not allowed to set the following labels: {forbidden}"))
        }
        (false, false) => refuse(format!("is not allowed to modify labels: {forbidden}")),
    }
}

/// Returns the labels that differ between two Nodes and that a node may not change, in order.
fn forbidden_labels<'a>(new: &'a Value, old: &'a Value) -> Vec<&'a str> {
    let (now, before) = (json_fields::labels(new), json_fields::labels(old));
    let changed = now.iter().filter(|(key, value)| before.get(key) != Some(*value));
    let removed = before.iter().filter(|(key, _)| now.get(key).is_none());
    let keys = changed.chain(removed).map(|(key, _)| key);
    let mut forbidden: Vec<&str> = keys.filter(|key| !may_be_set_by_node(key)).collect();
    forbidden.sort_unstable();
    forbidden
}

fn check_lease(attributes: &Attributes<'_>, node: &str, name: &str) -> Result<(), Status> {
    if attributes.namespace != LEASES {
        let why = format!("can only access leases in the {LEASES:?} system namespace");
        return Err(attributes.forbidden(name, why));
    }
    if name != node {
        let why = "can only access node lease with the same name as the requesting node";
        return Err(attributes.forbidden(name, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_that_stay_are_nobodys_business() {
        let node = |labels: Value| json!({"metadata": {"labels": labels}});
        let old = node(json!({"node-role.kubernetes.io/a": "", "x.k8s.io/b": "1"}));
        assert!(forbidden_labels(&old, &old).is_empty());
        let new = node(json!({"x.k8s.io/b": "2", "app": "z"}));
        assert_eq!(forbidden_labels(&new, &old), ["node-role.kubernetes.io/a", "x.k8s.io/b"]);
    }
}
