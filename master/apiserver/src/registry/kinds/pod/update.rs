//! Changes that are allowed in a Pod after its creation: images, a shorter deadline, added tolerations,
//! removed scheduling gates, and for a gated pod a narrower choice of nodes (KEP-3838). Called by `mod.rs`.

use proto_api::field::{ErrorList, Path};
use serde_json::Value;

use super::super::check::Report;
use super::super::diff;
use super::super::json_fields::{self, JsonFields, ensure, keep, same, set, unset};
use super::scheduling;

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                         `spec.tolerations` (only additions to existing tolerations),\
                         `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously \
                         negative)";

/// Checks that an update makes only allowed changes; the new object itself was validated before.
pub fn validate(new: &Value, old: &Value, errs: &mut ErrorList) {
    let (spec, before) = (new.sub("spec"), old.sub("spec"));
    super::update_annotations(new, old, errs);
    let path = Path::new("spec");
    for key in ["containers", "initContainers"] {
        if !container_lists(spec, before, key, &path.child(key), errs) {
            return;
        }
    }
    if !deadline(spec, before, &path.child("activeDeadlineSeconds"), errs) {
        return;
    }
    added_tolerations(spec, before, &path.child("tolerations"), errs);
    deleted_gates(spec, before, &path.child("schedulingGates"), errs);
    if same(spec, before) {
        return;
    }
    let mut munged = munge(spec, before);
    if !before.items("schedulingGates").is_empty() {
        gated(&mut munged, before, &path, errs);
    }
    if !same(&munged, before) {
        let detail = format!(
            "pod updates may not change fields other than {UPDATABLE}\n{}",
            diff::unified(before, &munged)
        );
        errs.forbidden(&path, &detail);
    }
}

fn container_lists(new: &Value, old: &Value, key: &str, path: &Path, errs: &mut ErrorList) -> bool {
    if new.items(key).len() != old.items(key).len() {
        errs.forbidden(path, "pod updates may not add or remove containers");
        return false;
    }
    for (i, container) in new.items(key).iter().enumerate() {
        let image = container.text("image");
        if image.is_empty() {
            errs.required(&path.index(i).child("image"), "");
        }
        if image.trim() != image {
            let detail = "must not have leading or trailing whitespace";
            errs.invalid(&path.index(i).child("image"), image, detail);
        }
    }
    true
}

fn deadline(new: &Value, old: &Value, path: &Path, errs: &mut ErrorList) -> bool {
    let key = "activeDeadlineSeconds";
    let (Some(seconds), before) = (new.opt_int(key), old.opt_int(key)) else {
        if old.has(key) {
            errs.invalid(path, Value::Null, "must not update from a positive integer to nil value");
        }
        return true;
    };
    let max = i64::from(i32::MAX);
    if !(0..=max).contains(&seconds) {
        errs.invalid(path, seconds, &format!("must be between 0 and {max}, inclusive"));
        return false;
    }
    if before.is_some_and(|b| b < seconds) {
        errs.invalid(path, seconds, "must be less than or equal to previous value");
        return false;
    }
    true
}

fn added_tolerations(new: &Value, old: &Value, path: &Path, errs: &mut ErrorList) {
    let plain = |toleration: &Value| {
        let mut copy = toleration.clone();
        unset(&mut copy, "tolerationSeconds");
        copy
    };
    let list: Vec<Value> = new.items("tolerations").iter().map(plain).collect();
    for toleration in old.items("tolerations").iter().map(plain) {
        if !list.iter().any(|t| same(t, &toleration)) {
            errs.forbidden(path, "existing toleration can not be modified except its tolerationSeconds");
            return;
        }
    }
    scheduling::tolerations(new.items("tolerations"), path, errs);
}

fn deleted_gates(new: &Value, old: &Value, path: &Path, errs: &mut ErrorList) {
    for (i, gate) in new.items("schedulingGates").iter().enumerate() {
        let name = gate.text("name");
        if !old.items("schedulingGates").iter().any(|g| g.text("name") == name) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errs.forbidden(&path.index(i).child("name"), &detail);
        }
    }
}

/// Returns the new spec with every field that may change reset to its old value; other differences are
/// errors.
fn munge(new: &Value, old: &Value) -> Value {
    let mut munged = new.clone();
    for key in ["containers", "initContainers"] {
        let images: Vec<Value> = old.items(key).iter().map(|c| c.sub("image").clone()).collect();
        for (container, image) in json_fields::items_mut(&mut munged, key).zip(images) {
            set(container, "image", image);
        }
    }
    for key in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        keep(&mut munged, old, key);
    }
    let grace = "terminationGracePeriodSeconds";
    if old.int(grace) < 0 && munged.opt_int(grace) == Some(1) {
        keep(&mut munged, old, grace);
    }
    munged
}

/// Checks that a gated pod only gained node selectors and node affinity expressions, and resets those in
/// `munged`.
fn gated(munged: &mut Value, old: &Value, path: &Path, errs: &mut ErrorList) {
    if !same(munged.sub("nodeSelector"), old.sub("nodeSelector")) {
        let new = munged.entries("nodeSelector");
        if old.entries("nodeSelector").iter().any(|(k, v)| new.get(k) != Some(v)) {
            let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            errs.invalid(&path.child("nodeSelector"), munged.sub("nodeSelector").clone(), detail);
        }
        keep(munged, old, "nodeSelector");
    }
    let before = old.sub("affinity").sub("nodeAffinity");
    let now = munged.sub("affinity").sub("nodeAffinity");
    if same(now, before) {
        return;
    }
    node_affinity(now, before, &path.child("affinity").child("nodeAffinity"), errs);
    let others = ["podAffinity", "podAntiAffinity"].iter().any(|k| munged.sub("affinity").has(k));
    if !old.has("affinity") && !others {
        unset(munged, "affinity");
    } else if let Some(affinity) = ensure(munged, "affinity") {
        keep(affinity, old.sub("affinity"), "nodeAffinity");
    }
}

fn node_affinity(new: &Value, old: &Value, path: &Path, errs: &mut ErrorList) {
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let before = old.sub(required).items("nodeSelectorTerms");
    let now = new.sub(required).items("nodeSelectorTerms");
    let at = path.child(required).child("nodeSelectorTerms");
    if !before.is_empty() && before.len() != now.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errs.invalid(&at, now.to_vec(), detail);
        return;
    }
    for (i, (old, new)) in before.iter().zip(now).enumerate() {
        let grown = |key: &str| {
            let (old, new) = (old.items(key), new.items(key));
            new.len() >= old.len() && old.iter().zip(new).all(|(a, b)| same(a, b))
        };
        let was_empty = old.items("matchExpressions").is_empty() && old.items("matchFields").is_empty();
        let is_empty = new.items("matchExpressions").is_empty() && new.items("matchFields").is_empty();
        if !grown("matchExpressions") || !grown("matchFields") || (was_empty && !is_empty) {
            let detail = "only additions are allowed (no mutations or deletions)";
            errs.invalid(&at.index(i), new.clone(), detail);
        }
    }
}
