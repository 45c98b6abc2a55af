//! The strategy of Pods: fields a client may set, validation, status, graceful deletion. The rules of a
//! PodSpec are in one file per topic; workload kinds use them through `../template.rs`.

pub mod annotations;
mod claim;
pub mod containers;
mod defaults;
mod env;
mod mounts;
mod network;
mod prepare;
mod probes;
mod projected;
pub mod qos;
pub mod resources;
pub mod scheduling;
mod security;
pub mod spec;
mod status;
mod subresources;
#[cfg(test)]
mod tests;
mod update;
mod volume_legacy;
pub mod volumes;
pub mod warnings;
mod windows;

use std::collections::BTreeMap;

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::super::strategy::{Strategy, metadata_fields};
use super::check::Report;
use super::json_fields::{self, JsonFields};

pub use prepare::drop_disabled_spec;
pub use subresources::{
    prepare_binding, prepare_ephemeral_containers, prepare_resize, validate_binding,
    validate_ephemeral_containers, validate_resize,
};

/// Whether a spec is validated as that of a Pod or of a template.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PodValidationOptions {
    /// True for a Pod, false for a template.
    pub is_pod: bool,
}

/// The strategy of Pods.
#[derive(Debug)]
pub struct PodStrategy;

/// Returns the init, regular and ephemeral containers of a spec with their paths, in upstream's order.
pub fn visit<'a>(spec: &'a Value, path: &Path) -> Vec<(&'a Value, Path)> {
    let mut out = Vec::new();
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        let list = path.child(key);
        out.extend(spec.items(key).iter().enumerate().map(|(i, c)| (c, list.index(i))));
    }
    out
}

/// Validates annotations, spec and the rules that only Pods have, not templates.
fn validate_whole(pod: &Value, errs: &mut ErrorList) {
    let options = PodValidationOptions { is_pod: true };
    let (meta, path) = (Path::new("metadata"), Path::new("spec"));
    let spec = pod.sub("spec");
    annotations::validate(json_fields::annotations(pod), spec, &meta.child("annotations"), errs);
    spec::validate(spec, Some(pod), &path, options, errs);
    if spec.text("serviceAccountName").is_empty() {
        for (i, volume) in spec.items("volumes").iter().enumerate() {
            for (j, source) in volume.sub("projected").items("sources").iter().enumerate() {
                if source.has("serviceAccountToken") {
                    let at = path.child("volumes").index(i).child("projected").child("sources").index(j);
                    let detail = "must not be specified when serviceAccountName is not set";
                    errs.forbidden(&at.child("serviceAccountToken"), detail);
                }
            }
        }
    }
    containers::trimmed_images(spec, "containers", &path, errs);
    containers::trimmed_images(spec, "initContainers", &path, errs);
}

/// Checks the annotations that may not change on an update.
fn update_annotations(new: &Value, old: &Value, errs: &mut ErrorList) {
    let at = Path::new("metadata").child("annotations");
    let (new_map, old_map) = (json_fields::annotations(new), json_fields::annotations(old));
    annotations::validate_update(new_map, old_map, new.sub("spec"), &at, errs);
}

impl Strategy for PodStrategy {
    fn default(&self, obj: &mut Value) {
        if let Some(spec) = obj.get_mut("spec") {
            defaults::pod_level_requests(spec);
        }
    }

    fn prepare_for_create(&self, obj: &mut Value) {
        prepare::create(obj);
    }

    fn prepare_for_update(&self, new: &mut Value, _old: &Value) {
        prepare::drop_disabled(new);
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        prepare::status_update(new, old);
    }

    fn validate(&self, obj: &Value, errs: &mut ErrorList) {
        validate_whole(obj, errs);
        let (spec, path) = (obj.sub("spec"), Path::new("spec"));
        if !spec.items("ephemeralContainers").is_empty() {
            errs.forbidden(&path.child("ephemeralContainers"), "cannot be set on create");
        }
        if !spec.text("nodeName").is_empty() && !spec.items("schedulingGates").is_empty() {
            let detail = "cannot be set until all schedulingGates have been cleared";
            errs.forbidden(&path.child("nodeName"), detail);
        }
        annotations::agree_with_fields(json_fields::annotations(obj), spec, &path, errs);
    }

    fn validate_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        validate_whole(new, errs);
        update::validate(new, old, errs);
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        status::validate(new, old, errs);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn selectable_fields(&self, obj: &Value) -> BTreeMap<String, String> {
        let (spec, status) = (obj.sub("spec"), obj.sub("status"));
        let mut out = metadata_fields(obj);
        for key in ["nodeName", "restartPolicy", "schedulerName", "serviceAccountName"] {
            out.insert(format!("spec.{key}"), spec.text(key).to_owned());
        }
        out.insert("spec.hostNetwork".to_owned(), spec.flag("hostNetwork").to_string());
        for key in ["phase", "nominatedNodeName"] {
            out.insert(format!("status.{key}"), status.text(key).to_owned());
        }
        let ip = status.items("podIPs").first().map_or(status.text("podIP"), |ip| ip.text("ip"));
        out.insert("status.podIP".to_owned(), ip.to_owned());
        out
    }

    fn supported_field_labels(&self) -> &'static [&'static str] {
        &[
            "metadata.name",
            "metadata.namespace",
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ]
    }

    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some() {
            return Vec::new();
        }
        let mut out = Vec::new();
        let messages = names::dns1123_label(json_fields::name(obj));
        if !messages.is_empty() {
            out.push(format!(
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS \
                 label is recommended: [{}]",
                messages.join(" ")
            ));
        }
        out.extend(warnings::spec(obj.sub("spec"), obj.sub("metadata"), &Path::root(), false));
        out
    }

    fn graceful_delete_seconds(&self, obj: &Value, requested: Option<i64>) -> Option<i64> {
        let spec = obj.sub("spec");
        let finished = matches!(obj.sub("status").text("phase"), "Failed" | "Succeeded");
        if spec.text("nodeName").is_empty() || finished {
            return Some(0);
        }
        let seconds = requested.unwrap_or_else(|| spec.int("terminationGracePeriodSeconds"));
        Some(if seconds < 0 { 1 } else { seconds })
    }
}
