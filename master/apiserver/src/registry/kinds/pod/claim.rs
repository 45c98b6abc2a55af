//! Validation of the claim template in a generic ephemeral volume: the metadata fields allowed, and the
//! claim's spec.

use proto_api::field::{ErrorList, Path};
use serde_json::Value;

use super::super::check::{self, Report, dns_subdomain};
use super::super::json_fields::JsonFields;
use super::super::string_rules;
use super::resources;

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// Validates a PersistentVolumeClaimTemplate.
pub fn template(template: &Value, path: &Path, errs: &mut ErrorList) {
    let (meta, meta_path) = (template.sub("metadata"), path.child("metadata"));
    check::annotation_map(meta.entries("annotations"), &meta_path.child("annotations"), errs);
    check::label_map(meta.entries("labels"), &meta_path.child("labels"), errs);
    for (key, value) in template.entries("metadata").iter() {
        if !matches!(key, "annotations" | "labels") && !super::super::json_fields::is_zero(value) {
            errs.forbidden(&meta_path.child(key), "cannot be set");
        }
    }
    spec(template.sub("spec"), &path.child("spec"), errs);
}

fn spec(spec: &Value, path: &Path, errs: &mut ErrorList) {
    let modes = spec.texts("accessModes");
    let modes_path = path.child("accessModes");
    if modes.is_empty() {
        errs.required(&modes_path, "at least 1 access mode is required");
    }
    check::label_selector(spec.sub("selector"), &path.child("selector"), errs);
    for mode in modes.iter().filter(|m| !ACCESS_MODES.contains(m)) {
        errs.unsupported(&modes_path, *mode, ACCESS_MODES);
    }
    let others = modes.iter().any(|m| *m != "ReadWriteOncePod" && ACCESS_MODES.contains(m));
    if others && modes.contains(&"ReadWriteOncePod") {
        errs.forbidden(&modes_path, "may not use ReadWriteOncePod with other access modes");
    }
    let storage = path.child("resources").key("storage");
    match spec.sub("resources").entries("requests").get("storage") {
        None => errs.required(&storage, ""),
        Some(value) => {
            let quantity = resources::quantity_of(value);
            if !quantity.is_positive() {
                errs.invalid(&storage, quantity.to_string(), check::NOT_POSITIVE);
            }
        }
    }
    for key in ["storageClassName", "volumeAttributesClassName"] {
        let value = spec.text(key);
        if !value.is_empty() && key == "storageClassName" {
            dns_subdomain(value, &path.child(key), errs);
        }
    }
    check::opt_one_of(spec, "volumeMode", &["Block", "Filesystem"], path, errs);
    sources(spec, path, errs);
    let class = spec.text("volumeAttributesClassName");
    if !class.is_empty() {
        errs.each(&path.child("volumeAttributesClassName"), class, string_rules::object_name(class));
    }
}

fn sources(spec: &Value, path: &Path, errs: &mut ErrorList) {
    for key in ["dataSource", "dataSourceRef"] {
        if let Some(source) = spec.at(key) {
            data_source(source, &path.child(key), errs);
        }
    }
    let (Some(source), Some(reference)) = (spec.at("dataSource"), spec.at("dataSourceRef")) else { return };
    if !reference.text("namespace").is_empty() {
        errs.invalid(path, "dataSource", "may not be specified when dataSourceRef.namespace is specified");
    } else if ["apiGroup", "kind", "name"].iter().any(|k| source.text(k) != reference.text(k)) {
        errs.invalid(path, "dataSource", "must match dataSourceRef");
    }
}

fn data_source(source: &Value, path: &Path, errs: &mut ErrorList) {
    check::required_text(source, "name", path, errs);
    check::required_text(source, "kind", path, errs);
    let group = source.text("apiGroup");
    if group.is_empty() && source.text("kind") != "PersistentVolumeClaim" {
        errs.invalid(
            path,
            source.text("kind"),
            "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
        );
    }
    if !group.is_empty() {
        dns_subdomain(group, &path.child("apiGroup"), errs);
    }
}
