//! Changes that the server makes to a Pod before validation: sets the first status, removes fields of
//! features that are off, merges label keys into selectors. Called by `mod.rs`; `drop_disabled_spec` also by
//! the workload kinds.

use serde_json::{Value, json};

use super::super::json_fields::{self, JsonFields, ensure, items_mut, keep, set, unset};
use super::{annotations, qos};

/// Prepares a new Pod: sets its status to pending with its QoS class, and removes fields of features that are
/// off.
pub fn create(pod: &mut Value) {
    drop_disabled(pod);
    let mut status = json!({"phase": "Pending", "qosClass": qos::class(pod.sub("spec"))});
    if !pod.sub("spec").items("schedulingGates").is_empty() {
        set(&mut status, "conditions", json!([gated_condition(pod)]));
    }
    set(pod, "status", status);
    merge_label_keys(pod);
    app_armor_fields(pod);
}

fn gated_condition(pod: &Value) -> Value {
    json!({
        "type": "PodScheduled",
        "status": "False",
        "reason": "SchedulingGated",
        "message": "Scheduling is blocked due to non-empty scheduling gates",
        "lastProbeTime": null,
        "lastTransitionTime": pod.sub("metadata").sub("creationTimestamp"),
    })
}

/// Removes the fields of features that are off in 1.35.
pub fn drop_disabled(pod: &mut Value) {
    if let Some(spec) = pod.get_mut("spec") {
        drop_disabled_spec(spec);
    }
}

/// Removes these fields from the spec of a Pod or a template: Workload references, cluster trust bundles and
/// pod certificates in projected volumes, stop signals.
pub fn drop_disabled_spec(spec: &mut Value) {
    unset(spec, "workloadRef");
    for volume in items_mut(spec, "volumes") {
        if let Some(projected) = volume.get_mut("projected") {
            for source in items_mut(projected, "sources") {
                unset(source, "clusterTrustBundle");
                unset(source, "podCertificate");
            }
        }
    }
    for key in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items_mut(spec, key) {
            let Some(lifecycle) = container.get_mut("lifecycle") else { continue };
            if lifecycle.has("stopSignal") {
                unset(lifecycle, "stopSignal");
                if json_fields::is_zero(lifecycle) {
                    unset(container, "lifecycle");
                }
            }
        }
    }
}

/// Converts label keys of affinity terms and spread constraints to selector expressions with the pod's own
/// values.
fn merge_label_keys(pod: &mut Value) {
    let labels = pod.sub("metadata").sub("labels").clone();
    let Some(spec) = pod.get_mut("spec") else { return };
    for constraint in items_mut(spec, "topologySpreadConstraints") {
        merge_keys(constraint, &labels);
    }
    let Some(affinity) = spec.get_mut("affinity") else { return };
    for key in ["podAffinity", "podAntiAffinity"] {
        let Some(terms) = affinity.get_mut(key) else { continue };
        for weighted in items_mut(terms, "preferredDuringSchedulingIgnoredDuringExecution") {
            if let Some(term) = weighted.get_mut("podAffinityTerm") {
                merge_keys(term, &labels);
            }
        }
        for term in items_mut(terms, "requiredDuringSchedulingIgnoredDuringExecution") {
            merge_keys(term, &labels);
        }
    }
}

fn merge_keys(term: &mut Value, labels: &Value) {
    let mut expressions = Vec::new();
    for (list, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in term.texts(list) {
            if let Some(value) = labels.opt_text(key) {
                expressions.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    if expressions.is_empty() || !term.has("labelSelector") {
        return;
    }
    let Some(selector) = ensure(term, "labelSelector") else { return };
    let mut all = selector.items("matchExpressions").to_vec();
    all.append(&mut expressions);
    set(selector, "matchExpressions", all);
}

/// Converts an AppArmor annotation to the form of the field; `None` for an unknown profile.
fn app_armor_field(annotation: &str) -> Option<Value> {
    match annotation {
        "unconfined" => Some(json!({"type": "Unconfined"})),
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        other => {
            let name = other.strip_prefix("localhost/").filter(|n| !n.is_empty() && n.trim() == *n)?;
            Some(json!({"type": "Localhost", "localhostProfile": name}))
        }
    }
}

/// Sets the AppArmor field of containers that have only the annotation.
fn app_armor_fields(pod: &mut Value) {
    let spec = pod.sub("spec");
    if spec.sub("os").text("name") == "windows" || json_fields::annotations(pod).is_empty() {
        return;
    }
    let whole = spec.sub("securityContext").sub("appArmorProfile").clone();
    let annotations = pod.sub("metadata").sub("annotations").clone();
    let Some(spec) = pod.get_mut("spec") else { return };
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items_mut(spec, key) {
            let name = format!("{}{}", annotations::APP_ARMOR, container.text("name"));
            let profile = annotations.opt_text(&name).and_then(app_armor_field);
            let Some(profile) = profile.filter(|p| !json_fields::same(p, &whole)) else { continue };
            if container.sub("securityContext").has("appArmorProfile") {
                continue;
            }
            if let Some(context) = ensure(container, "securityContext") {
                set(context, "appArmorProfile", profile);
            }
        }
    }
}

/// Keeps the old owners in a status update, and the QoS class and observed generations that it leaves out.
pub fn status_update(new: &mut Value, old: &Value) {
    if let Some(meta) = new.get_mut("metadata") {
        keep(meta, old.sub("metadata"), "ownerReferences");
    }
    let before = old.sub("status");
    let Some(status) = ensure(new, "status") else { return };
    if status.text("qosClass").is_empty() {
        keep(status, before, "qosClass");
    }
    if status.int("observedGeneration") == 0 {
        keep(status, before, "observedGeneration");
    }
    let mut known: Vec<&Value> = before.items("conditions").iter().collect();
    for condition in items_mut(status, "conditions") {
        let Some(i) = known.iter().position(|c| c.text("type") == condition.text("type")) else { continue };
        let old = known.remove(i);
        if condition.int("observedGeneration") == 0 {
            keep(condition, old, "observedGeneration");
        }
    }
}
