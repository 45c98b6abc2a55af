//! Admission: changes or refuses a write beyond the rules of the object's kind. `registry/create.rs`,
//! `registry/update.rs` and `registry/delete.rs` call it on the object stored at that moment, so that a
//! client gains nothing by delaying its request's body; `handlers/token.rs` calls it for TokenRequests. It
//! does not depend on the registry: plugins look objects up through [`ObjectLookup`]. NamespaceLifecycle's
//! existence check is part of the transaction (`Registry::namespace_guard`).

mod mirror_pod;
mod mountable_secrets;
mod node_restriction;
mod priority;
mod runtime_class;
mod service_account;
mod tolerations;

pub use node_restriction::check_token_request;
use proto_api::status::Status;
use serde_json::{Value, json};

use crate::context::UserInfo;
use crate::object_lookup::ObjectLookup;
use crate::settings::ClusterSettings;

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-public", "kube-system"];

/// The user, object and subresource of a write.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// User who sent the write.
    pub user: &'a UserInfo,
    /// API group of the object.
    pub group: &'a str,
    /// Plural resource name of the object.
    pub resource: &'a str,
    /// Subresource the write goes through, such as `status`; empty for the object itself.
    pub subresource: &'a str,
    /// Namespace of the object; empty for cluster-scoped kinds.
    pub namespace: &'a str,
}

impl Attributes<'_> {
    /// Returns a 403 in the words of Kubernetes' admission chain.
    fn forbidden(&self, name: &str, why: impl std::fmt::Display) -> Status {
        Status::forbidden(self.group, self.resource, name, why)
    }

    fn is_core(&self, resource: &str) -> bool {
        self.group.is_empty() && self.resource == resource
    }
}

/// Admits an object that is about to be created: checks it, and sets the fields that admission adds.
///
/// # Errors
///
/// 403 with the plugin's reason.
pub async fn admit_create(
    objects: &dyn ObjectLookup,
    attributes: &Attributes<'_>,
    obj: &mut Value,
) -> Result<(), Status> {
    node_restriction::check_create(objects, attributes, obj).await?;
    if attributes.is_core("nodes") {
        taint_not_ready(obj);
    }
    if attributes.is_core("pods") {
        service_account::admit(objects, attributes, obj).await?;
        tolerations::admit(objects.settings(), obj);
        priority::admit_create(obj)?;
        runtime_class::check(attributes, obj)?;
    }
    Ok(())
}

/// Adds the not-ready taint (TaintNodesByCondition), so that no pod is scheduled to a new node before it
/// reports ready.
fn taint_not_ready(node: &mut Value) {
    let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
    if !node.get("spec").is_some_and(Value::is_object) {
        node["spec"] = json!({});
    }
    match node["spec"].get_mut("taints").and_then(Value::as_array_mut) {
        Some(taints) if taints.contains(&taint) => {}
        Some(taints) => taints.push(taint),
        None => node["spec"]["taints"] = json!([taint]),
    }
}

/// Checks the object a client sent to replace `old`, the stored object, through any subresource. It runs
/// before the kind's strategy restores the fields that the client may not change, as in Kubernetes.
///
/// # Errors
///
/// 403 with the plugin's reason.
pub async fn check_update(
    objects: &dyn ObjectLookup,
    attributes: &Attributes<'_>,
    new: &Value,
    old: &Value,
) -> Result<(), Status> {
    node_restriction::check_update(attributes, new, old)?;
    if attributes.is_core("pods") && attributes.subresource == "ephemeralcontainers" {
        return service_account::check_ephemeral_containers(objects, attributes, new, old).await;
    }
    Ok(())
}

/// Sets the fields that admission adds to an object that is about to replace `old` through its main resource.
pub fn admit_update(settings: &ClusterSettings, attributes: &Attributes<'_>, obj: &mut Value, old: &Value) {
    if attributes.is_core("pods") {
        tolerations::admit(settings, obj);
        priority::admit_update(obj, old);
    }
}

/// Checks a delete or an eviction of the object called `name`; `old` is the stored object, `None` where it
/// does not exist.
///
/// # Errors
///
/// 403 for namespaces that every cluster needs, and for objects that a node may not delete.
pub fn check_delete(attributes: &Attributes<'_>, name: &str, old: Option<&Value>) -> Result<(), Status> {
    if attributes.is_core("namespaces") && IMMORTAL.contains(&name) {
        return Err(attributes.forbidden(name, "this namespace may not be deleted"));
    }
    match old {
        Some(old) => node_restriction::check_delete(attributes, name, old),
        None => Ok(()),
    }
}
