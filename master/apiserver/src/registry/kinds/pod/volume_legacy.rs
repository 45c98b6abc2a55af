//! Rules of volume sources that need a cloud, a storage system or a removed plugin. As in stock Kubernetes,
//! the API still accepts most of them, so that manifests get the same answers.

use proto_api::field::{ErrorList, Path};
use serde_json::Value;

use super::super::check::{self, Report, dns_label, required_text};
use super::super::json_fields::JsonFields;
use super::PodValidationOptions;
use super::volumes::descending_path;

/// Validates a `gitRepo` volume source.
pub fn git_repo(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    required_text(source, "repository", path, errs);
    descending_path(source.text("directory"), &path.child("directory"), errs);
}

fn disk(source: &Value, id: &str, path: &Path, errs: &mut ErrorList) {
    required_text(source, id, path, errs);
    let partition = source.int("partition");
    if !(0..=255).contains(&partition) {
        errs.invalid(&path.child("partition"), partition, "must be between 1 and 255, inclusive");
    }
}

/// Validates a `gcePersistentDisk` volume source.
pub fn gce_disk(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    disk(source, "pdName", path, errs);
}

/// Validates an `awsElasticBlockStore` volume source.
pub fn aws_disk(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    disk(source, "volumeID", path, errs);
}

/// Validates an `nfs` volume source.
pub fn nfs(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    required_text(source, "server", path, errs);
    required_text(source, "path", path, errs);
    if !source.text("path").starts_with('/') {
        errs.invalid(&path.child("path"), source.text("path"), "must be an absolute path");
    }
}

/// Validates an `iscsi` volume source.
pub fn iscsi(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    required_text(source, "targetPortal", path, errs);
    let name = source.text("iqn");
    if name.is_empty() {
        errs.required(&path.child("iqn"), "");
    } else {
        initiator(name, &path.child("iqn"), errs);
    }
    check::in_range(source.int("lun"), 0, 255, &path.child("lun"), errs);
    if (source.flag("chapAuthDiscovery") || source.flag("chapAuthSession")) && !source.has("secretRef") {
        errs.required(&path.child("secretRef"), "");
    }
    if let Some(name) = source.opt_text("initiatorName") {
        initiator(name, &path.child("initiatorname"), errs);
    }
}

/// Validates an iSCSI initiator name: `iqn.YYYY-MM.domain[:anything]`, or `eui.` and 16 or `naa.` and 16 or
/// 32 hex digits.
fn initiator(name: &str, path: &Path, errs: &mut ErrorList) {
    let hex = |rest: &str, lengths: &[usize]| {
        lengths.contains(&rest.len()) && rest.bytes().all(|c| c.is_ascii_hexdigit())
    };
    let good = match name.get(..3) {
        Some("iqn") => name.strip_prefix("iqn.").is_some_and(is_iqn),
        Some("eui") => name.strip_prefix("eui.").is_some_and(|rest| hex(rest, &[16])),
        Some("naa") => name.strip_prefix("naa.").is_some_and(|rest| hex(rest, &[16, 32])),
        _ => {
            errs.invalid(path, name, "must be valid format starting with iqn, eui, or naa");
            return;
        }
    };
    if !good {
        errs.invalid(path, name, "must be valid format");
    }
}

fn is_iqn(rest: &str) -> bool {
    let Some((date, domain)) = rest.split_at_checked(7) else { return false };
    let date_good =
        date.bytes().enumerate().all(|(i, c)| if i == 4 { c == b'-' } else { c.is_ascii_digit() });
    let domain = domain.strip_prefix('.').map(|d| d.split_once(':').map_or(d, |(name, _)| name));
    date_good
        && domain.is_some_and(|d| {
            !d.is_empty() && d.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-'))
        })
}

/// Checks that volume name and portal together have at most 64 characters when an initiator name is given.
pub fn iscsi_name_length(source: &Value, volume: &str, path: &Path, errs: &mut ErrorList) {
    if volume.len() + 1 + source.text("targetPortal").len() > 64 {
        errs.invalid(
            &path.child("name"),
            volume,
            "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName \
             is specified.",
        );
    }
}

/// Validates a `glusterfs` volume source.
pub fn glusterfs(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    required_text(source, "endpoints", path, errs);
    required_text(source, "path", path, errs);
}

/// Validates a `flocker` volume source.
pub fn flocker(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    let (name, uuid) = (source.text("datasetName"), source.text("datasetUUID"));
    match (name.is_empty(), uuid.is_empty()) {
        (true, true) => errs.required(path, "one of datasetName and datasetUUID is required"),
        (false, false) => {
            errs.invalid(path, "resource", "datasetName and datasetUUID can not be specified simultaneously");
        }
        _ => {}
    }
    if name.contains('/') {
        errs.invalid(&path.child("datasetName"), name, "must not contain '/'");
    }
}

/// Validates an `rbd` volume source.
pub fn rbd(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    if source.items("monitors").is_empty() {
        errs.required(&path.child("monitors"), "");
    }
    required_text(source, "image", path, errs);
}

fn secret_name(source: &Value, path: &Path, errs: &mut ErrorList) {
    if source.at("secretRef").is_some_and(|s| s.text("name").is_empty()) {
        errs.required(&path.child("secretRef").child("name"), "");
    }
}

/// Validates a `cinder` volume source.
pub fn cinder(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    required_text(source, "volumeID", path, errs);
    secret_name(source, path, errs);
}

/// Validates a `cephfs` volume source.
pub fn cephfs(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    if source.items("monitors").is_empty() {
        errs.required(&path.child("monitors"), "");
    }
}

/// Validates a `quobyte` volume source.
pub fn quobyte(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = source.text("registry");
    if registry.is_empty() {
        errs.required(&path.child("registry"), PAIRS);
    } else if source.text("tenant").len() >= 65 {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        errs.required(&path.child("tenant"), detail);
    } else {
        for _ in registry.split(',').filter(|pair| !pair.contains(':')) {
            errs.invalid(&path.child("registry"), registry, PAIRS);
        }
    }
    required_text(source, "volume", path, errs);
}

/// Validates an `fc` (Fibre Channel) volume source.
pub fn fibre_channel(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    let (targets, ids) = (source.texts("targetWWNs"), source.texts("wwids"));
    let at = path.child("targetWWNs");
    if targets.is_empty() && ids.is_empty() {
        errs.required(&at, "must specify either targetWWNs or wwids, but not both");
    }
    if !targets.is_empty() && !ids.is_empty() {
        errs.invalid(
            &at,
            check::text_list(&targets),
            "targetWWNs and wwids can not be specified simultaneously",
        );
    }
    if targets.is_empty() {
        return;
    }
    match source.opt_int("lun") {
        None => errs.required(&path.child("lun"), "lun is required if targetWWNs is specified"),
        Some(lun) => check::in_range(lun, 0, 255, &path.child("lun"), errs),
    }
}

/// Validates a `flexVolume` volume source.
pub fn flex(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    required_text(source, "driver", path, errs);
    for (key, _) in source.entries("options").iter() {
        let namespace = key.split_once('/').map_or(key, |(n, _)| n);
        let normalized = format!(".{}", namespace.to_lowercase());
        if normalized.ends_with(".kubernetes.io") || normalized.ends_with(".k8s.io") {
            let at = path.child("options").key(key);
            errs.invalid(&at, key, "kubernetes.io and k8s.io namespaces are reserved");
        }
    }
}

/// Validates an `azureFile` volume source.
pub fn azure_file(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    required_text(source, "secretName", path, errs);
    required_text(source, "shareName", path, errs);
}

/// Validates an `azureDisk` volume source.
pub fn azure_disk(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    const MANAGED: &str =
        "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOB: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    required_text(source, "diskName", path, errs);
    required_text(source, "diskURI", path, errs);
    check::opt_one_of(source, "cachingMode", &["None", "ReadOnly", "ReadWrite"], path, errs);
    check::opt_one_of(source, "kind", &["Dedicated", "Managed", "Shared"], path, errs);
    let uri = source.text("diskURI");
    match source.opt_text("kind") {
        Some("Managed") if !uri.starts_with("/subscriptions/") => {
            errs.unsupported(&path.child("diskURI"), uri, &[MANAGED]);
        }
        Some(kind) if kind != "Managed" && !uri.starts_with("https://") => {
            errs.unsupported(&path.child("diskURI"), uri, &[BLOB]);
        }
        _ => {}
    }
}

/// Validates a `vsphereVolume` volume source.
pub fn vsphere(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    required_text(source, "volumePath", path, errs);
}

/// Validates a `photonPersistentDisk` volume source.
pub fn photon(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    required_text(source, "pdID", path, errs);
}

/// Validates a `portworxVolume` volume source.
pub fn portworx(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    required_text(source, "volumeID", path, errs);
}

/// Validates a `storageos` volume source.
pub fn storageos(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    let (name, namespace) = (source.text("volumeName"), source.text("volumeNamespace"));
    if name.is_empty() {
        errs.required(&path.child("volumeName"), "");
    } else {
        dns_label(name, &path.child("volumeName"), errs);
    }
    if !namespace.is_empty() {
        dns_label(namespace, &path.child("volumeNamespace"), errs);
    }
    secret_name(source, path, errs);
}

/// Validates a `scaleIO` volume source.
pub fn scale_io(source: &Value, path: &Path, _: PodValidationOptions, errs: &mut ErrorList) {
    for key in ["gateway", "system", "volumeName"] {
        required_text(source, key, path, errs);
    }
}
