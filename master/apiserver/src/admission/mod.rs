//! Admission: what changes or refuses an object beyond its kind's own rules. `registry/write.rs` calls it
//! between defaulting and validation, in stock's order. NamespaceLifecycle's existence check is part of the
//! transaction (`Registry::namespace_guard`).

mod node_restriction;
mod priority;
mod service_account;
mod tolerations;

use proto_api::status::Status;
use serde_json::{Value, json};

use crate::registry::write::Write;
use crate::registry::{Registry, Target};

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-public", "kube-system"];

fn is_pod(target: Target<'_>) -> bool {
    target.kind.gvk.group.is_empty() && target.kind.resource == "pods"
}

/// Admits an object that is going to be created.
///
/// # Errors
///
/// 403 with the plugin's reason.
pub async fn admit_create(registry: &Registry, write: Write<'_>, obj: &mut Value) -> Result<(), Status> {
    node_restriction::check_create(write, obj)?;
    if write.target.kind.gvk.group.is_empty() && write.target.kind.resource == "nodes" {
        taint_not_ready(obj);
    }
    if is_pod(write.target) {
        service_account::admit(registry, write, obj).await?;
        tolerations::admit(registry, obj);
        priority::admit_create(obj)?;
    }
    Ok(())
}

/// TaintNodesByCondition: nothing is scheduled to a new node before it has said that it is ready.
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

/// Admits an object that is going to replace `old`.
///
/// # Errors
///
/// 403 with the plugin's reason.
pub async fn admit_update(
    registry: &Registry,
    write: Write<'_>,
    obj: &mut Value,
    old: &Value,
) -> Result<(), Status> {
    if is_pod(write.target) {
        tolerations::admit(registry, obj);
        priority::admit_update(obj, old);
    }
    Ok(())
}

/// Refuses what may not be deleted.
///
/// # Errors
///
/// 403 for the namespaces a cluster cannot do without.
pub fn check_delete(target: Target<'_>, name: &str) -> Result<(), Status> {
    if target.kind.gvk.group.is_empty() && target.kind.resource == "namespaces" && IMMORTAL.contains(&name) {
        return Err(Status::forbidden("", "namespaces", name, "this namespace may not be deleted"));
    }
    Ok(())
}
