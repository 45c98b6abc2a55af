//! Subresources of Pods: binding, ephemeral containers (KEP-277) and resize (KEP-1287). `handlers/` calls a
//! `prepare_` function on the object that is going to be written, then the `validate_` function beside it.

use proto_api::field::{ErrorList, Path};
use serde_json::{Value, json};

use super::super::check::Report;
use super::super::diff;
use super::super::json_fields::{self, JsonFields, ensure, items_mut, keep, same, set, unset};
use super::{annotations, prepare, qos, update_annotations, validate_whole};

/// Validates a Binding.
pub fn validate_binding(binding: &Value, errs: &mut ErrorList) {
    let (target, path) = (binding.sub("target"), Path::new("target"));
    let kind = target.text("kind");
    if !matches!(kind, "" | "Node") {
        errs.unsupported(&path.child("kind"), kind, &["Node", "<empty>"]);
    }
    if target.text("name").is_empty() {
        errs.required(&path.child("name"), "");
    }
}

/// Assigns the pod to the binding's node. `now` is an RFC 3339 time with seconds.
///
/// # Errors
///
/// The reason why the pod cannot be assigned; the answer is 409 with this text.
pub fn prepare_binding(pod: &mut Value, binding: &Value, now: &str) -> Result<(), String> {
    let name = json_fields::name(pod).to_owned();
    let spec = pod.sub("spec");
    if pod.sub("metadata").has("deletionTimestamp") {
        return Err(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let node = spec.text("nodeName");
    if !node.is_empty() {
        return Err(format!("pod {name} is already assigned to node {node:?}"));
    }
    if !spec.items("schedulingGates").is_empty() {
        return Err(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    if let Some(spec) = pod.get_mut("spec") {
        set(spec, "nodeName", binding.sub("target").text("name"));
    }
    if let Some(meta) = ensure(pod, "metadata") {
        for key in ["annotations", "labels"] {
            if binding.sub("metadata").entries(key).is_empty() {
                continue;
            }
            let Some(map) = ensure(meta, key) else { continue };
            for (k, v) in binding.sub("metadata").entries(key).iter() {
                set(map, k, v.clone());
            }
        }
    }
    if let Some(status) = ensure(pod, "status") {
        unset(status, "nominatedNodeName");
        set_scheduled(status, now);
    }
    Ok(())
}

fn set_scheduled(status: &mut Value, now: &str) {
    let condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
    });
    let mut list = status.items("conditions").to_vec();
    match list.iter_mut().find(|c| c.text("type") == "PodScheduled") {
        Some(old) if old.text("status") == "True" => {}
        Some(old) => *old = condition,
        None => list.push(condition),
    }
    set(status, "conditions", list);
}

/// Restores the status and metadata of the old object, which updates of `ephemeralcontainers` and `resize`
/// may not change.
fn restore(new: &mut Value, old: &Value) {
    keep(new, old, "status");
    if let Some(meta) = new.get_mut("metadata") {
        let before = old.sub("metadata");
        for key in
            ["deletionTimestamp", "generation", "labels", "annotations", "finalizers", "ownerReferences"]
        {
            keep(meta, before, key);
        }
    }
}

/// Restores everything but `spec.ephemeralContainers` from the old object.
pub fn prepare_ephemeral_containers(new: &mut Value, old: &Value) {
    let list = new.sub("spec").sub("ephemeralContainers").clone();
    keep(new, old, "spec");
    restore(new, old);
    if let Some(spec) = new.get_mut("spec") {
        if list.is_null() {
            unset(spec, "ephemeralContainers");
        } else {
            set(spec, "ephemeralContainers", list);
        }
        prepare::drop_disabled_spec(spec);
    }
}

/// Checks that ephemeral containers were only added, and none changed or removed.
pub fn validate_ephemeral_containers(new: &Value, old: &Value, errs: &mut ErrorList) {
    validate_whole(new, errs);
    update_annotations(new, old, errs);
    if json_fields::annotations(old).get(annotations::MIRROR).is_some() {
        *errs = ErrorList::default();
        errs.forbidden(&Path::root(), "static pods do not support ephemeral containers");
        return;
    }
    let path = Path::new("spec").child("ephemeralContainers");
    let list = new.sub("spec").items("ephemeralContainers");
    for before in old.sub("spec").items("ephemeralContainers") {
        let name = before.text("name");
        match list.iter().rfind(|c| c.text("name") == name) {
            None => {
                errs.forbidden(&path, &format!("existing ephemeral containers {name:?} may not be removed\n"))
            }
            Some(now) if !same(now, before) => {
                let diff = diff::unified(before, now);
                errs.forbidden(
                    &path,
                    &format!("existing ephemeral containers {name:?} may not be changed\n{diff}"),
                );
            }
            Some(_) => {}
        }
    }
}

/// Restores everything but the containers' resources and resize policies; leaves a changed set of containers
/// for validation to report.
pub fn prepare_resize(new: &mut Value, old: &Value) {
    let lists = ["containers", "initContainers"];
    let spec = new.sub("spec");
    let before = old.sub("spec");
    if lists.iter().any(|k| spec.items(k).len() != before.items(k).len()) {
        return;
    }
    let mut merged = before.clone();
    for key in lists {
        let names =
            |s: &Value| -> Vec<String> { s.items(key).iter().map(|c| c.text("name").to_owned()).collect() };
        if names(spec) != names(before) {
            keep(&mut merged, spec, key);
            continue;
        }
        for (container, wanted) in items_mut(&mut merged, key).zip(spec.items(key)) {
            keep(container, wanted, "resources");
            keep(container, wanted, "resizePolicy");
        }
    }
    prepare::drop_disabled_spec(&mut merged);
    set(new, "spec", merged);
    restore(new, old);
}

/// Checks that only CPU and memory of containers and sidecars changed, and that the QoS class stays the same.
pub fn validate_resize(new: &Value, old: &Value, errs: &mut ErrorList) {
    validate_whole(new, errs);
    let only = |errs: &mut ErrorList, detail: &str| {
        *errs = ErrorList::default();
        errs.forbidden(&Path::root(), detail);
    };
    if json_fields::annotations(old).get(annotations::MIRROR).is_some() {
        return only(errs, "static pods cannot be resized");
    }
    let (spec, before) = (new.sub("spec"), old.sub("spec"));
    if before.sub("os").text("name") == "windows" {
        return only(errs, "windows pods cannot be resized");
    }
    let path = Path::new("spec");
    let class = match old.sub("status").text("qosClass") {
        "" => qos::class(before),
        class => class,
    };
    if class != qos::class(spec) {
        errs.invalid(&path, class, "Pod QOS Class may not change as a result of resizing");
    }
    let running = |s: &&Value| s.sub("state").has("running");
    let status = old.sub("status").items("containerStatuses").iter().find(running);
    if status.is_some_and(|s| !s.has("resources")) {
        errs.forbidden(&path, "Pod running on node without support for resize");
    }
    let whole = |s: &Value| {
        let r = s.sub("resources");
        r.entries("requests").len() + r.entries("limits").len() > 0
    };
    if whole(spec) || whole(before) {
        let detail = "resize of pods with pod-level resources is forbidden when \
                      InPlacePodLevelResourcesVerticalScalingEnabled feature gate is disabled";
        errs.forbidden(&Path::root(), detail);
        return;
    }
    if !same_containers(spec, before, &path, errs) {
        return;
    }
    for key in ["initContainers", "containers"] {
        resized(spec, before, key, &path, errs);
    }
    only_resources(spec, before, &path, errs);
}

fn same_containers(new: &Value, old: &Value, path: &Path, errs: &mut ErrorList) -> bool {
    let mut good = true;
    for key in ["containers", "initContainers"] {
        let (now, before) = (new.items(key), old.items(key));
        if now.len() != before.len() {
            errs.forbidden(&path.child(key), &format!("{key} may not be added or removed on resize"));
            good = false;
            continue;
        }
        for (i, _) in
            now.iter().zip(before).enumerate().filter(|(_, (a, b))| a.text("name") != b.text("name"))
        {
            let detail = format!("{key} may not be renamed or reordered on resize");
            errs.forbidden(&path.child(key).index(i).child("name"), &detail);
            good = false;
        }
    }
    good
}

fn is_sidecar(container: &Value) -> bool {
    container.text("restartPolicy") == "Always"
}

fn resized(new: &Value, old: &Value, key: &str, path: &Path, errs: &mut ErrorList) {
    for (i, (now, before)) in new.items(key).iter().zip(old.items(key)).enumerate() {
        if key == "initContainers" && !is_sidecar(before) {
            continue;
        }
        for (list, what) in [("requests", "resource requests"), ("limits", "resource limits")] {
            let now = now.sub("resources").entries(list);
            if before.sub("resources").entries(list).iter().any(|(name, _)| now.get(name).is_none()) {
                let at = path.child(key).index(i).child("resources").child(list);
                errs.forbidden(&at, &format!("{what} cannot be removed"));
            }
        }
    }
}

/// Reports every difference other than CPU and memory.
fn only_resources(new: &Value, old: &Value, path: &Path, errs: &mut ErrorList) {
    let mut munged = new.clone();
    for key in ["containers", "initContainers"] {
        for (container, before) in items_mut(&mut munged, key).zip(old.items(key)) {
            let init = key == "initContainers";
            let detail = match (init, is_sidecar(container)) {
                (true, false) => "resources for non-sidecar init containers are immutable",
                (true, true) => "only cpu and memory resources for sidecar containers are mutable",
                (false, _) => "only cpu and memory resources are mutable",
            };
            if !init || is_sidecar(container) {
                drop_compute(container, before);
            }
            if !same(container, before) {
                errs.forbidden(path, detail);
            }
        }
    }
    if errs.is_empty() && !same(&munged, old) {
        errs.forbidden(path, "only cpu and memory resources are mutable");
    }
}

fn drop_compute(container: &mut Value, before: &Value) {
    let Some(resources) = ensure(container, "resources") else { return };
    for list in ["requests", "limits"] {
        let Some(amounts) = ensure(resources, list) else { continue };
        for name in ["cpu", "memory"] {
            keep(amounts, before.sub("resources").sub(list), name);
        }
    }
}
