//! Projected and downward API volume sources, and the field and resource selectors that they share with
//! environment variables. Called by `volumes.rs` and `env.rs`.

use std::collections::BTreeSet;

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::super::check::{self, Report, required_text};
use super::super::json_fields::JsonFields;
use super::volumes::{file_mode, key_to_path, local_path};
use super::{PodValidationOptions, resources};

const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Field paths that exist; each place that refers to fields accepts only some of them.
const KNOWN_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

const BYTES: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// Validates a `downwardAPI` volume source.
pub fn downward_api(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    file_mode(source, "defaultMode", path, errs);
    for file in source.items("items") {
        downward_file(file, path, errs);
    }
}

fn downward_file(file: &Value, path: &Path, errs: &mut ErrorList) {
    required_text(file, "path", path, errs);
    local_path(file.text("path"), &path.child("path"), errs);
    if let Some(field) = file.at("fieldRef") {
        field_selector(field, VOLUME_FIELDS, &path.child("fieldRef"), errs);
        if file.has("resourceFieldRef") {
            let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errs.invalid(path, "resource", detail);
        }
    } else if let Some(resource) = file.at("resourceFieldRef") {
        resource_selector(resource, true, &path.child("resourceFieldRef"), errs);
    } else {
        errs.required(path, "one of fieldRef and resourceFieldRef is required");
    }
    file_mode(file, "mode", path, errs);
}

/// Validates a `fieldRef`; `allowed` are the field paths that are accepted, sorted.
pub fn field_selector(selector: &Value, allowed: &[&str], path: &Path, errs: &mut ErrorList) {
    let version = selector.text("apiVersion");
    let field = selector.text("fieldPath");
    if version.is_empty() {
        errs.required(&path.child("apiVersion"), "");
        return;
    }
    if field.is_empty() {
        errs.required(&path.child("fieldPath"), "");
        return;
    }
    let at = path.child("fieldPath");
    if version != "v1" {
        let detail = format!("error converting fieldPath: unsupported pod version: {version}");
        errs.invalid(&at, field, &detail);
        return;
    }
    if let Some((base, subscript)) = subscript(field) {
        match base {
            "metadata.annotations" => check::qualified_name(&subscript.to_lowercase(), path, errs),
            "metadata.labels" => check::qualified_name(subscript, path, errs),
            _ => {
                let detail =
                    format!("error converting fieldPath: field label does not support subscript: {field}");
                errs.invalid(&at, field, &detail);
            }
        }
        return;
    }
    let internal = if field == "spec.host" { "spec.nodeName" } else { field };
    if !KNOWN_FIELDS.contains(&internal) {
        let detail = format!("error converting fieldPath: field label not supported: {field}");
        errs.invalid(&at, field, &detail);
    } else if !allowed.contains(&internal) {
        errs.unsupported(&at, internal, allowed);
    }
}

/// Splits `metadata.labels['key']` into the path and the key; `None` where there is no subscript.
fn subscript(field: &str) -> Option<(&str, &str)> {
    field.strip_suffix("']")?.split_once("['")
}

/// Validates a `resourceFieldRef`; in a volume (`volume` is true) it must name the container.
pub fn resource_selector(selector: &Value, volume: bool, path: &Path, errs: &mut ErrorList) {
    let resource = selector.text("resource");
    let huge = ["requests.hugepages-", "limits.hugepages-"].iter().any(|p| resource.starts_with(p));
    if volume && selector.text("containerName").is_empty() {
        errs.required(&path.child("containerName"), "");
    } else if resource.is_empty() {
        errs.required(&path.child("resource"), "");
    } else if !RESOURCES.contains(&resource) && !huge {
        errs.unsupported(&path.child("resource"), resource, RESOURCES);
    }
    divisor(resource, selector.sub("divisor"), path, errs);
}

fn divisor(resource: &str, value: &Value, path: &Path, errs: &mut ErrorList) {
    let quantity = resources::quantity_of(value);
    if quantity.is_zero() {
        return;
    }
    let (allowed, what): (&[&str], &str) = match resource.split_once('.').map(|(_, r)| r) {
        Some("cpu") => (&["1m", "1"], "cpu"),
        Some("memory") => (BYTES, "memory"),
        Some("ephemeral-storage") => (BYTES, "local ephemeral storage"),
        Some(r) if r.starts_with("hugepages-") => (BYTES, "hugepages"),
        _ => return,
    };
    if allowed.contains(&quantity.to_string().as_str()) {
        return;
    }
    let list = if what == "cpu" { "1m and 1".to_owned() } else { BYTES.join(", ") };
    let detail = format!("only divisor's values {list} are supported with the {what} resource");
    errs.invalid(&path.child("divisor"), resource, &detail);
}

/// File paths seen so far in a projected volume; they must differ.
struct Files<'a> {
    seen: BTreeSet<&'a str>,
}

impl<'a> Files<'a> {
    fn add(&mut self, file: &'a str, named: &str, path: &Path, errs: &mut ErrorList) {
        if !file.is_empty() && !self.seen.insert(file) {
            errs.invalid(path, named, "conflicting duplicate paths");
        }
    }
}

/// Validates a `projected` volume source.
pub fn projected(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    file_mode(source, "defaultMode", path, errs);
    let mut files = Files { seen: BTreeSet::new() };
    for (i, projection) in source.items("sources").iter().enumerate() {
        let at = path.child("sources").index(i);
        let mut count = 0;
        for kind in ["secret", "configMap"] {
            if let Some(keyed) = projection.at(kind) {
                count += 1;
                keyed_projection(keyed, &at.child(kind), path, &mut files, errs);
            }
        }
        if let Some(downward) = projection.at("downwardAPI") {
            count += 1;
            for file in downward.items("items") {
                downward_file(file, &at.child("downwardAPI"), errs);
                files.add(file.text("path"), file.text("path"), path, errs);
            }
        }
        if let Some(token) = projection.at("serviceAccountToken") {
            count += 1;
            account_token(token, &at.child("serviceAccountToken"), path, errs);
        }
        if let Some(bundle) = projection.at("clusterTrustBundle") {
            count += 1;
            trust_bundle(bundle, &at.child("clusterTrustBundle"), errs);
            files.add(bundle.text("path"), bundle.text("path"), path, errs);
        }
        if count > 1 {
            errs.forbidden(&at, "may not specify more than 1 volume type per source");
        }
    }
}

fn keyed_projection<'a>(
    source: &'a Value,
    path: &Path,
    volume: &Path,
    files: &mut Files<'a>,
    errs: &mut ErrorList,
) {
    required_text(source, "name", path, errs);
    let items = path.child("items");
    for (i, item) in source.items("items").iter().enumerate() {
        key_to_path(item, &items.index(i), errs);
        files.add(item.text("path"), source.text("name"), volume, errs);
    }
}

fn account_token(token: &Value, path: &Path, volume: &Path, errs: &mut ErrorList) {
    let seconds = token.int("expirationSeconds");
    let at = path.child("expirationSeconds");
    if seconds < 600 {
        errs.invalid(&at, seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > 1 << 32 {
        errs.invalid(&at, seconds, "may not specify a duration larger than 2^32 seconds");
    }
    if token.text("path").is_empty() {
        errs.required(&volume.child("path"), "");
    } else {
        local_path(token.text("path"), &volume.child("path"), errs);
    }
}

fn trust_bundle(bundle: &Value, path: &Path, errs: &mut ErrorList) {
    match (bundle.opt_text("name"), bundle.opt_text("signerName")) {
        (Some(_), Some(_)) => {
            errs.invalid(path, bundle.clone(), "only one of name and signerName may be used");
        }
        (Some(name), None) => {
            let at = path.child("name");
            if name.is_empty() {
                errs.required(&at, "must be a valid object name");
            }
            for message in names::dns1123_subdomain(name.rsplit(':').next().unwrap_or(name)) {
                errs.invalid(&at, name, &format!("not a valid clustertrustbundlename: {message}"));
            }
            if let Some(selector) = bundle.at("labelSelector") {
                let detail = "labelSelector must be unset if name is specified";
                errs.invalid(&path.child("labelSelector"), selector.clone(), detail);
            }
        }
        (None, Some(signer)) => {
            if signer.is_empty() {
                errs.required(&path.child("signerName"), "must be a valid signer name");
            }
            check::label_selector(bundle.sub("labelSelector"), &path.child("labelSelector"), errs);
        }
        (None, None) => errs.required(path, "either name or signerName must be specified"),
    }
    required_text(bundle, "path", path, errs);
    local_path(bundle.text("path"), &path.child("path"), errs);
}
