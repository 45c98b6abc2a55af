//! Validation of pod volumes: names, exactly one source each, and the rules of every source. Called by
//! `spec.rs`; projected and downward API sources are in `projected.rs`, the rarer ones in `volume_legacy.rs`.

use std::collections::{BTreeMap, BTreeSet};

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::super::check::{self, FILE_MODE, Report, dns_label};
use super::super::json_fields::{JsonFields, name as object_name};
use super::super::string_rules;
use super::{PodValidationOptions, projected, resources, volume_legacy as legacy};

/// Volume sources by volume name, for the mounts that refer to them. It holds only volumes without errors.
pub type Volumes<'a> = BTreeMap<&'a str, &'a Value>;

type Check = fn(&Value, &Path, PodValidationOptions, &mut ErrorList);

/// A kind of volume source and its rules.
struct Source {
    /// Name of the source's field in a volume.
    field: &'static str,
    /// Name in the error about a second source in a volume; upstream spells two of them differently.
    second: &'static str,
    /// Name in the errors of the source's own fields.
    path: &'static str,
    check: Check,
}

const fn source(field: &'static str, check: Check) -> Source {
    Source { field, second: field, path: field, check }
}

/// All kinds of volume sources in upstream's order, which is the order of the errors.
const SOURCES: &[Source] = &[
    source("emptyDir", empty_dir),
    source("hostPath", host_path),
    source("gitRepo", legacy::git_repo),
    Source {
        field: "gcePersistentDisk",
        second: "gcePersistentDisk",
        path: "persistentDisk",
        check: legacy::gce_disk,
    },
    source("awsElasticBlockStore", legacy::aws_disk),
    source("secret", secret),
    source("nfs", legacy::nfs),
    source("iscsi", legacy::iscsi),
    source("glusterfs", legacy::glusterfs),
    source("flocker", legacy::flocker),
    source("persistentVolumeClaim", claim),
    source("rbd", legacy::rbd),
    source("cinder", legacy::cinder),
    Source { field: "cephfs", second: "cephFS", path: "cephfs", check: legacy::cephfs },
    source("quobyte", legacy::quobyte),
    Source {
        field: "downwardAPI",
        second: "downwarAPI",
        path: "downwardAPI",
        check: projected::downward_api,
    },
    source("fc", legacy::fibre_channel),
    source("flexVolume", legacy::flex),
    source("configMap", config_map),
    source("azureFile", legacy::azure_file),
    source("vsphereVolume", legacy::vsphere),
    source("photonPersistentDisk", legacy::photon),
    source("portworxVolume", legacy::portworx),
    source("azureDisk", legacy::azure_disk),
    source("storageos", legacy::storageos),
    source("projected", projected::projected),
    source("scaleIO", legacy::scale_io),
    source("csi", csi),
    source("ephemeral", ephemeral),
    source("image", image),
];

/// Returns whether a volume has any source.
pub fn has_source(volume: &Value) -> bool {
    SOURCES.iter().any(|s| volume.has(s.field))
}

/// Validates `spec.volumes`. `pod` is the whole object for a Pod and `None` for a template.
pub fn validate<'a>(
    spec: &'a Value,
    pod: Option<&Value>,
    path: &Path,
    options: PodValidationOptions,
    errs: &mut ErrorList,
) -> Volumes<'a> {
    let pod_name = pod.map(object_name).unwrap_or_default();
    let volumes = spec.items("volumes");
    let claims: BTreeSet<String> = volumes
        .iter()
        .filter(|v| v.has("ephemeral") && !pod_name.is_empty())
        .map(|v| format!("{pod_name}-{}", v.text("name")))
        .collect();
    let mut good = Volumes::new();
    for (i, volume) in volumes.iter().enumerate() {
        let at = path.index(i);
        let mut found = ErrorList::default();
        validate_source(volume, pod_name, &at, options, &mut found);
        let name = volume.text("name");
        let name_path = at.child("name");
        if name.is_empty() {
            found.required(&name_path, "");
        } else {
            dns_label(name, &name_path, &mut found);
        }
        if good.contains_key(name) {
            found.duplicate(&name_path, name);
        }
        if found.is_empty() {
            good.insert(name, volume);
        }
        errs.append(found);
        let claim_name = volume.sub("persistentVolumeClaim").text("claimName");
        if claims.contains(claim_name) {
            errs.invalid(
                &at.child("persistentVolumeClaim").child("claimName"),
                claim_name,
                "must not reference a PVC that gets created for an ephemeral volume",
            );
        }
    }
    good
}

fn validate_source(
    volume: &Value,
    pod_name: &str,
    path: &Path,
    options: PodValidationOptions,
    errs: &mut ErrorList,
) {
    let mut count = 0;
    for source in SOURCES {
        let Some(value) = volume.at(source.field) else { continue };
        if count > 0 {
            errs.forbidden(&path.child(source.second), "may not specify more than 1 volume type");
        } else {
            (source.check)(value, &path.child(source.path), options, errs);
            if source.field == "ephemeral" {
                ephemeral_name(pod_name, volume.text("name"), path, errs);
            }
        }
        count += 1;
        if source.field == "iscsi" && value.has("initiatorName") {
            legacy::iscsi_name_length(value, volume.text("name"), path, errs);
        }
    }
    if count == 0 {
        errs.required(path, "must specify a volume type");
    }
}

fn ephemeral_name(pod_name: &str, volume_name: &str, path: &Path, errs: &mut ErrorList) {
    if pod_name.is_empty() || volume_name.is_empty() {
        return;
    }
    let claim = format!("{pod_name}-{volume_name}");
    for message in names::dns1123_subdomain(&claim) {
        errs.invalid(&path.child("name"), volume_name, &format!("PVC name {claim:?}: {message}"));
    }
}

fn empty_dir(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    if source.has("sizeLimit") && resources::quantity_of(source.sub("sizeLimit")).is_negative() {
        errs.forbidden(&path.child("sizeLimit"), "SizeLimit field must be a valid resource quantity");
    }
}

fn host_path(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    const TYPES: &[&str] = &[
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    let value = source.text("path");
    if value.is_empty() {
        errs.required(&path.child("path"), "");
        return;
    }
    no_backsteps(value, &path.child("path"), errs);
    check::opt_one_of(source, "type", TYPES, path, errs);
}

fn secret(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    check::required_text(source, "secretName", path, errs);
    keyed_files(source, path, errs);
}

fn config_map(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    check::required_text(source, "name", path, errs);
    keyed_files(source, path, errs);
}

fn keyed_files(source: &Value, path: &Path, errs: &mut ErrorList) {
    file_mode(source, "defaultMode", path, errs);
    let items = path.child("items");
    for (i, item) in source.items("items").iter().enumerate() {
        key_to_path(item, &items.index(i), errs);
    }
}

/// Validates an entry of `items` in a ConfigMap or Secret source.
pub fn key_to_path(item: &Value, path: &Path, errs: &mut ErrorList) {
    check::required_text(item, "key", path, errs);
    check::required_text(item, "path", path, errs);
    local_path(item.text("path"), &path.child("path"), errs);
    file_mode(item, "mode", path, errs);
}

/// Checks that the field `key` is a file mode between 0 and 0777.
pub fn file_mode(obj: &Value, key: &str, path: &Path, errs: &mut ErrorList) {
    if let Some(mode) = obj.opt_int(key).filter(|m| !(0..=0o777).contains(m)) {
        errs.invalid(&path.child(key), mode, FILE_MODE);
    }
}

fn claim(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    check::required_text(source, "claimName", path, errs);
}

fn csi(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    let driver = source.text("driver");
    let at = path.child("driver");
    if driver.is_empty() {
        errs.required(&at, "");
    } else {
        if driver.len() > 63 {
            errs.too_long(&at, 63);
        }
        errs.each(&at, driver, names::dns1123_subdomain(&driver.to_lowercase()));
    }
    if let Some(secret) = source.at("nodePublishSecretRef") {
        let name = secret.text("name");
        if name.is_empty() {
            errs.required(&path.child("nodePublishSecretRef").child("name"), "");
        } else {
            errs.each(&path.child("name"), name, string_rules::object_name(name));
        }
    }
}

fn ephemeral(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    let at = path.child("volumeClaimTemplate");
    match source.at("volumeClaimTemplate") {
        None => errs.required(&at, ""),
        Some(template) => super::claim::template(template, &at, errs),
    }
}

fn image(source: &Value, path: &Path, options: PodValidationOptions, errs: &mut ErrorList) {
    if options.is_pod {
        check::required_text(source, "reference", path, errs);
    }
    super::containers::pull_policy(source.text("pullPolicy"), &path.child("pullPolicy"), errs);
}

/// Checks that a path is relative, contains no `..` and does not begin with two dots.
pub fn local_path(value: &str, path: &Path, errs: &mut ErrorList) {
    descending_path(value, path, errs);
    if value.starts_with("..") && !value.starts_with("../") {
        errs.invalid(path, value, "must not start with '..'");
    }
}

/// Checks that a path is relative and contains no `..`.
pub fn descending_path(value: &str, path: &Path, errs: &mut ErrorList) {
    if value.starts_with('/') {
        errs.invalid(path, value, "must be a relative path");
    }
    no_backsteps(value, path, errs);
}

/// Checks that a path contains no `..`.
pub fn no_backsteps(value: &str, path: &Path, errs: &mut ErrorList) {
    if has_backsteps(value) {
        errs.invalid(path, value, "must not contain '..'");
    }
}

/// Returns whether a path has a `..` part.
pub fn has_backsteps(value: &str) -> bool {
    value.split('/').any(|part| part == "..")
}
