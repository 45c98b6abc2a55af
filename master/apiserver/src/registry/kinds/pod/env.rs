//! Validation of containers' environment variables: names, values, and sources of values. Called by
//! `containers.rs`.

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::super::check::{Report, dns_label, required_text};
use super::super::json_fields::JsonFields;
use super::super::string_rules;
use super::projected::{field_selector, resource_selector};
use super::volumes::no_backsteps;

const FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Validates the `env` of a container.
pub fn variables(container: &Value, path: &Path, errs: &mut ErrorList) {
    for (i, variable) in container.items("env").iter().enumerate() {
        let at = path.index(i);
        let name = variable.text("name");
        if name.is_empty() {
            errs.required(&at.child("name"), "");
        } else {
            errs.each(&at.child("name"), name, string_rules::env_name(name));
        }
        if let Some(source) = variable.at("valueFrom") {
            value_from(variable, source, &at.child("valueFrom"), errs);
        }
    }
}

fn value_from(variable: &Value, source: &Value, path: &Path, errs: &mut ErrorList) {
    let mut count = 0;
    if let Some(field) = source.at("fieldRef") {
        count += 1;
        field_selector(field, FIELDS, &path.child("fieldRef"), errs);
    }
    if let Some(resource) = source.at("resourceFieldRef") {
        count += 1;
        resource_selector(resource, false, &path.child("resourceFieldRef"), errs);
    }
    for kind in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(key) = source.at(kind) {
            count += 1;
            key_selector(key, &path.child(kind), errs);
        }
    }
    if let Some(file) = source.at("fileKeyRef") {
        count += 1;
        file_selector(file, &path.child("fileKeyRef"), errs);
    }
    if count == 0 {
        let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or \
                      `fileKeyRef`";
        errs.invalid(path, "", detail);
    } else if !variable.text("value").is_empty() {
        errs.invalid(path, "", "may not be specified when `value` is not empty");
    } else if count > 1 {
        errs.invalid(path, "", "may not have more than one field specified at a time");
    }
}

fn key_selector(selector: &Value, path: &Path, errs: &mut ErrorList) {
    let (name, key) = (selector.text("name"), selector.text("key"));
    errs.each(&path.child("name"), name, string_rules::object_name(name));
    if key.is_empty() {
        errs.required(&path.child("key"), "");
    } else {
        errs.each(&path.child("key"), key, names::config_map_key(key));
    }
}

fn file_selector(selector: &Value, path: &Path, errs: &mut ErrorList) {
    required_text(selector, "key", path, errs);
    let key = selector.text("key");
    if !key.is_empty() {
        errs.each(&path.child("key"), key, string_rules::env_name(key));
    }
    required_text(selector, "volumeName", path, errs);
    if !selector.text("volumeName").is_empty() {
        dns_label(selector.text("volumeName"), &path.child("volumeName"), errs);
    }
    required_text(selector, "path", path, errs);
    no_backsteps(selector.text("path"), &path.child("path"), errs);
}

/// Validates the `envFrom` of a container.
pub fn sources(container: &Value, path: &Path, errs: &mut ErrorList) {
    for (i, source) in container.items("envFrom").iter().enumerate() {
        let at = path.index(i);
        let prefix = source.text("prefix");
        if !prefix.is_empty() {
            errs.each(&at.child("prefix"), prefix, string_rules::env_name(prefix));
        }
        let mut count = 0;
        for kind in ["configMapRef", "secretRef"] {
            let Some(reference) = source.at(kind) else { continue };
            count += 1;
            let (name, at) = (reference.text("name"), at.child(kind).child("name"));
            if name.is_empty() {
                errs.required(&at, "");
            } else {
                errs.each(&at, name, names::as_prefix(names::dns1123_subdomain, name));
            }
        }
        if count == 0 {
            errs.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`");
        } else if count > 1 {
            errs.invalid(path, "", "may not have more than one field specified at a time");
        }
    }
}

/// Checks that every `fileKeyRef` names an emptyDir volume of the pod.
pub fn file_volumes(spec: &Value, path: &Path, errs: &mut ErrorList) {
    for (container, at) in super::visit(spec, path) {
        for (i, variable) in container.items("env").iter().enumerate() {
            let Some(file) = variable.sub("valueFrom").at("fileKeyRef") else { continue };
            let name = file.text("volumeName");
            let at = at.child("env").index(i).child("valueFrom").child("fileKeyRef").child("volumeName");
            match spec.items("volumes").iter().rfind(|v| v.text("name") == name) {
                None => errs.not_found(&at, name),
                Some(volume) if !volume.has("emptyDir") => {
                    errs.invalid(&at, name, "referenced volume must be of type emptyDir");
                }
                Some(_) => {}
            }
        }
    }
}
