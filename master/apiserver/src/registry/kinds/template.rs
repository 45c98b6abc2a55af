//! Pod templates: validation and warnings that PodTemplate and the workload kinds share.

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::check::{self, Report};
use super::json_fields::{self, JsonFields};
use super::pod::{PodValidationOptions, annotations, spec, warnings};

/// Validates a pod template.
pub fn validate(template: &Value, path: &Path, errs: &mut ErrorList) {
    let meta = template.sub("metadata");
    let notes = meta.entries("annotations");
    check::label_map(meta.entries("labels"), &path.child("labels"), errs);
    check::annotation_map(notes, &path.child("annotations"), errs);
    let pod = template.sub("spec");
    annotations::validate(notes, pod, &path.child("annotations"), errs);
    let at = path.child("spec");
    spec::validate(pod, None, &at, PodValidationOptions { is_pod: false }, errs);
    annotations::agree_with_fields(notes, pod, &at, errs);
    if !pod.items("ephemeralContainers").is_empty() {
        errs.forbidden(&at.child("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// Validates the rules of a controller that keeps pods running (restart always, no deadline). `kind` is named
/// in one error.
pub fn keeps_running(template: &Value, kind: &str, path: &Path, errs: &mut ErrorList) {
    let at = path.child("spec");
    let pod = template.sub("spec");
    if pod.text("restartPolicy") != "Always" {
        errs.unsupported(&at.child("restartPolicy"), pod.text("restartPolicy"), &["Always"]);
    }
    if pod.has("activeDeadlineSeconds") {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errs.forbidden(&at.child("activeDeadlineSeconds"), &detail);
    }
}

/// Returns the warnings about a workload on create, or on an update that changed its spec.
pub fn warnings(obj: &Value, old: Option<&Value>, path: &Path, pods_named_after_it: bool) -> Vec<String> {
    let template = obj.sub("spec").sub("template");
    let mut out = Vec::new();
    match old {
        Some(old) if json_fields::same(obj.sub("spec"), old.sub("spec")) => return out,
        Some(_) => {}
        None if pods_named_after_it => {
            let messages = names::dns1123_label(json_fields::name(obj));
            if !messages.is_empty() {
                out.push(format!(
                    "metadata.name: this is used in Pod names and hostnames, which can result in surprising \
                     behavior; a DNS label is recommended: [{}]",
                    messages.join(" ")
                ));
            }
        }
        None => {}
    }
    out.extend(warnings::spec(template.sub("spec"), template.sub("metadata"), path, true));
    out
}
