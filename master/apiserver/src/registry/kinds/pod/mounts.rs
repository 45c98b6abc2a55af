//! Validation of volume mounts and block devices. Called by `containers.rs` with the pod's valid volumes.

use std::collections::BTreeSet;

use proto_api::field::{ErrorList, Path};
use serde_json::Value;

use super::super::check::Report;
use super::super::json_fields::JsonFields;
use super::volumes::{Volumes, descending_path, has_backsteps};

/// Validates the `volumeMounts` of a container.
pub fn mounts(container: &Value, volumes: &Volumes<'_>, path: &Path, errs: &mut ErrorList) {
    let of_devices = |key: &str| -> BTreeSet<&str> {
        container.items("volumeDevices").iter().map(|device| device.text(key)).collect()
    };
    let (device_names, device_paths) = (of_devices("name"), of_devices("devicePath"));
    let mut points = BTreeSet::new();
    for (i, mount) in container.items("volumeMounts").iter().enumerate() {
        let at = path.index(i);
        let (name, point) = (mount.text("name"), mount.text("mountPath"));
        if name.is_empty() {
            errs.required(&at.child("name"), "");
        }
        if !volumes.contains_key(name) {
            errs.not_found(&at.child("name"), name);
        }
        if point.is_empty() {
            errs.required(&at.child("mountPath"), "");
        }
        if !points.insert(point) {
            errs.invalid(&at.child("mountPath"), point, "must be unique");
        }
        if device_names.contains(name) {
            errs.invalid(&at.child("name"), name, "must not already exist in volumeDevices");
        }
        if device_paths.contains(point) {
            errs.invalid(&at.child("mountPath"), point, "must not already exist as a path in volumeDevices");
        }
        sub_paths(mount, &at, path, errs);
        propagation(mount, container, &path.child("mountPropagation"), errs);
        recursive_read_only(mount, &path.child("recursiveReadOnly"), errs);
    }
}

fn sub_paths(mount: &Value, at: &Path, list: &Path, errs: &mut ErrorList) {
    let (plain, expression) = (mount.text("subPath"), mount.text("subPathExpr"));
    if !plain.is_empty() {
        descending_path(plain, &list.child("subPath"), errs);
    }
    if expression.is_empty() {
        return;
    }
    if !plain.is_empty() {
        let detail = "subPathExpr and subPath are mutually exclusive";
        errs.invalid(&at.child("subPathExpr"), expression, detail);
    }
    descending_path(expression, &list.child("subPathExpr"), errs);
}

fn propagation(mount: &Value, container: &Value, path: &Path, errs: &mut ErrorList) {
    const MODES: &[&str] = &["Bidirectional", "HostToContainer", "None"];
    let Some(mode) = mount.opt_text("mountPropagation") else { return };
    if !MODES.contains(&mode) {
        errs.unsupported(path, mode, MODES);
    }
    if mode == "Bidirectional" && !container.sub("securityContext").flag("privileged") {
        errs.forbidden(path, "Bidirectional mount propagation is available only to privileged containers");
    }
}

fn recursive_read_only(mount: &Value, path: &Path, errs: &mut ErrorList) {
    match mount.opt_text("recursiveReadOnly") {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !mount.flag("readOnly") {
                errs.forbidden(path, "may only be specified when readOnly is true");
            }
            if !matches!(mount.opt_text("mountPropagation"), None | Some("None")) {
                let detail = "may only be specified when mountPropagation is None or not specified";
                errs.forbidden(path, detail);
            }
        }
        Some(other) => errs.unsupported(path, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

/// Validates the `volumeDevices` of a container.
pub fn devices(container: &Value, volumes: &Volumes<'_>, path: &Path, errs: &mut ErrorList) {
    let of_mounts = |key: &str| -> BTreeSet<&str> {
        container.items("volumeMounts").iter().map(|mount| mount.text(key)).collect()
    };
    let (mount_names, mount_paths) = (of_mounts("name"), of_mounts("mountPath"));
    let (mut paths, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (i, device) in container.items("volumeDevices").iter().enumerate() {
        let at = path.index(i);
        let (name, point) = (device.text("name"), device.text("devicePath"));
        let (name_path, point_path) = (at.child("name"), at.child("devicePath"));
        if name.is_empty() {
            errs.required(&name_path, "");
        }
        if names.contains(name) {
            errs.invalid(&name_path, name, "must be unique");
        }
        match volumes.get(name) {
            None => errs.not_found(&name_path, name),
            Some(volume) if !volume.has("persistentVolumeClaim") && !volume.has("ephemeral") => {
                let detail =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errs.invalid(&name_path, name, detail);
            }
            Some(_) => {}
        }
        if point.is_empty() {
            errs.required(&point_path, "");
        }
        if paths.contains(point) {
            errs.invalid(&point_path, point, "must be unique");
        }
        if has_backsteps(point) {
            errs.invalid(&point_path, point, "can not contain backsteps ('..')");
        } else {
            paths.insert(point);
        }
        if mount_names.contains(name) {
            errs.invalid(&name_path, name, "must not already exist in volumeMounts");
        }
        if mount_paths.contains(point) {
            errs.invalid(&point_path, point, "must not already exist as a path in volumeMounts");
        }
        if !name.is_empty() {
            names.insert(name);
        }
    }
}
