//! Validation of the pod annotations that Kubernetes interprets: mirror pods, deletion cost, and the older
//! forms of seccomp and AppArmor profiles. Called by `mod.rs`, `update.rs` and `template.rs`.

use proto_api::field::{ErrorList, Path};
use proto_api::go;
use serde_json::Value;

use super::super::check::Report;
use super::super::json_fields::{Entries, JsonFields};
use super::scheduling;
use super::volumes::descending_path;

/// Annotation that marks the mirror pod of a static pod.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
/// Prefix of the older AppArmor annotations, followed by a container's name.
pub const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Validates the annotations of a pod or a template.
pub fn validate(annotations: Entries<'_>, spec: &Value, path: &Path, errs: &mut ErrorList) {
    if let Some(value) = annotations.text(MIRROR).filter(|_| spec.text("nodeName").is_empty()) {
        errs.invalid(&path.key(MIRROR), value, "must set spec.nodeName if mirror pod annotation is set");
    }
    if let Some(text) = annotations.text(TOLERATIONS).filter(|t| !t.is_empty()) {
        match serde_json::from_str::<Vec<Value>>(text) {
            Ok(list) => scheduling::tolerations(&list, &path.child(TOLERATIONS), errs),
            Err(error) => errs.invalid(path, TOLERATIONS, &error.to_string()),
        }
    }
    if let Some(cost) = annotations.text(DELETION_COST).filter(|c| !is_plain_i32(c)) {
        errs.invalid(&path.key(DELETION_COST), cost, "must be a 32bit integer");
    }
    if let Some(profile) = annotations.text(SECCOMP_POD) {
        seccomp(profile, &path.child(SECCOMP_POD), errs);
    }
    for (key, profile) in annotations.texts().filter(|(k, _)| k.starts_with(SECCOMP_CONTAINER)) {
        seccomp(profile, &path.child(key), errs);
    }
    for (key, profile) in annotations.texts() {
        let Some(container) = key.strip_prefix(APP_ARMOR) else { continue };
        if !super::visit(spec, path).iter().any(|(c, _)| c.text("name") == container) {
            errs.invalid(&path.key(key), container, "container not found");
        }
        let known = matches!(profile, "" | "runtime/default" | "unconfined");
        if !known && !profile.starts_with("localhost/") {
            let detail = format!("invalid AppArmor profile name: {}", go::quote(profile));
            errs.invalid(&path.key(key), profile, &detail);
        }
    }
}

/// Returns whether the text is a 32-bit integer without a plus sign or leading zeros.
fn is_plain_i32(text: &str) -> bool {
    let first = text.bytes().next();
    let plain = text == "0" || matches!(first, Some(b'-' | b'1'..=b'9'));
    plain && text.parse::<i32>().is_ok()
}

fn seccomp(profile: &str, path: &Path, errs: &mut ErrorList) {
    if matches!(profile, "runtime/default" | "docker/default" | "unconfined") {
        return;
    }
    match profile.strip_prefix("localhost/") {
        Some(file) => descending_path(file, path, errs),
        None => errs.invalid(path, profile, "must be a valid seccomp profile"),
    }
}

/// Checks that profiles given both by annotation and by field are the same.
pub fn agree_with_fields(annotations: Entries<'_>, spec: &Value, path: &Path, errs: &mut ErrorList) {
    let pod = spec.sub("securityContext");
    let at = path.child("securityContext").child("seccompProfile");
    if let (Some(profile), Some(text)) = (pod.at("seccompProfile"), annotations.text(SECCOMP_POD)) {
        seccomp_agrees(text, profile, &at, errs);
    }
    let containers = super::visit(spec, path);
    for (container, at) in &containers {
        let key = format!("{SECCOMP_CONTAINER}{}", container.text("name"));
        let profile = container.sub("securityContext").at("seccompProfile");
        if let (Some(profile), Some(text)) = (profile, annotations.text(&key)) {
            seccomp_agrees(text, profile, &at.child("securityContext").child("seccompProfile"), errs);
        }
    }
    if spec.sub("os").text("name") == "windows" {
        return;
    }
    for (container, at) in &containers {
        let own = container.sub("securityContext").at("appArmorProfile");
        let key = format!("{APP_ARMOR}{}", container.text("name"));
        if let (Some(profile), Some(text)) = (own.or(pod.at("appArmorProfile")), annotations.text(&key)) {
            app_armor_agrees(text, profile, &at.child("securityContext").child("appArmorProfile"), errs);
        }
    }
}

fn seccomp_agrees(text: &str, profile: &Value, path: &Path, errs: &mut ErrorList) {
    let good = match profile.text("type") {
        "Unconfined" => text == "unconfined",
        "RuntimeDefault" => matches!(text, "runtime/default" | "docker/default"),
        "Localhost" => match text.strip_prefix("localhost/") {
            Some(file) => {
                if profile.opt_text("localhostProfile") != Some(file) {
                    let detail = "seccomp profile in annotation and field must match";
                    errs.forbidden(&path.child("localhostProfile"), detail);
                }
                true
            }
            None => false,
        },
        _ => true,
    };
    if !good {
        errs.forbidden(&path.child("type"), "seccomp type in annotation and field must match");
    }
}

fn app_armor_agrees(text: &str, profile: &Value, path: &Path, errs: &mut ErrorList) {
    let good = match profile.text("type") {
        "Unconfined" => text == "unconfined",
        "RuntimeDefault" => text == "runtime/default",
        "Localhost" => match text.strip_prefix("localhost/") {
            Some(name) => {
                if profile.opt_text("localhostProfile") != Some(name) {
                    let detail = "apparmor profile in annotation and field must match";
                    errs.forbidden(&path.child("localhostProfile"), detail);
                }
                true
            }
            None => false,
        },
        _ => true,
    };
    if !good {
        errs.forbidden(&path.child("type"), "apparmor type in annotation and field must match");
    }
}

/// Checks that the annotations of a pod that may not change after creation did not change.
pub fn validate_update(new: Entries<'_>, old: Entries<'_>, spec: &Value, path: &Path, errs: &mut ErrorList) {
    for (key, _) in old.iter().filter(|(k, v)| new.get(k) != Some(v)) {
        if key.starts_with(APP_ARMOR) {
            errs.forbidden(&path.key(key), "may not remove or update AppArmor annotations");
        }
        if key == MIRROR {
            errs.forbidden(&path.key(key), "may not remove or update mirror pod annotation");
        }
    }
    for (key, _) in new.iter().filter(|(k, _)| old.get(k).is_none()) {
        if key.starts_with(APP_ARMOR) {
            errs.forbidden(&path.key(key), "may not add AppArmor annotations");
        }
        if key == MIRROR {
            errs.forbidden(&path.key(key), "may not add mirror pod annotation");
        }
    }
    validate(new, spec, path, errs);
}
