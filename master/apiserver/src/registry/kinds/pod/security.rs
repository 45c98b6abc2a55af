//! Security contexts of pods and containers: ids, seccomp, AppArmor, SELinux, sysctls. Called by `spec.rs`
//! and `containers.rs`; Windows options are in `windows.rs`.

use std::collections::BTreeSet;

use proto_api::field::{ErrorList, Path};
use serde_json::Value;

use super::super::check::{self, Report, id_number};
use super::super::json_fields::JsonFields;
use super::super::string_rules;
use super::volumes::descending_path;
use super::windows;

const PROFILES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];

/// Validates the `securityContext` of a container. `host_users` is false in a pod with a user namespace.
pub fn container(context: &Value, host_users: bool, path: &Path, errs: &mut ErrorList) {
    for key in ["runAsUser", "runAsGroup"] {
        if let Some(id) = context.opt_int(key) {
            id_number(id, &path.child(key), errs);
        }
    }
    if let Some(mount) = context.opt_text("procMount") {
        let at = path.child("procMount");
        if !matches!(mount, "Default" | "Unmasked") {
            errs.unsupported(&at, mount, &["Default", "Unmasked"]);
        }
        if host_users && mount == "Unmasked" {
            errs.invalid(&at, mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    seccomp(context, &path.child("seccompProfile"), errs);
    if context.opt_flag("allowPrivilegeEscalation") == Some(false) {
        if context.flag("privileged") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errs.invalid(path, context.clone(), detail);
        }
        for _ in context.sub("capabilities").texts("add").iter().filter(|c| **c == "CAP_SYS_ADMIN") {
            let detail =
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errs.invalid(path, context.clone(), detail);
        }
    }
    windows::options(context.sub("windowsOptions"), &path.child("windowsOptions"), errs);
    app_armor(context, &path.child("appArmorProfile"), errs);
}

/// Validates the `securityContext` of a pod.
pub fn pod(spec: &Value, path: &Path, errs: &mut ErrorList) {
    let Some(context) = spec.at("securityContext") else { return };
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        if let Some(id) = context.opt_int(key) {
            id_number(id, &path.child(key), errs);
        }
    }
    for (i, group) in context.items("supplementalGroups").iter().enumerate() {
        let at = path.child("supplementalGroups").index(i);
        id_number(group.as_i64().unwrap_or_default(), &at, errs);
    }
    if spec.flag("shareProcessNamespace") && spec.flag("hostPID") {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errs.invalid(&path.child("shareProcessNamespace"), true, detail);
    }
    sysctls(spec, context, &path.child("sysctls"), errs);
    check::opt_one_of(context, "fsGroupChangePolicy", &["Always", "OnRootMismatch"], path, errs);
    seccomp(context, &path.child("seccompProfile"), errs);
    windows::options(context.sub("windowsOptions"), &path.child("windowsOptions"), errs);
    app_armor(context, &path.child("appArmorProfile"), errs);
    check::opt_one_of(context, "supplementalGroupsPolicy", &["Merge", "Strict"], path, errs);
    check::opt_one_of(context, "seLinuxChangePolicy", &["MountOption", "Recursive"], path, errs);
}

fn sysctls(spec: &Value, context: &Value, path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, sysctl) in context.items("sysctls").iter().enumerate() {
        let at = path.index(i).child("name");
        let name = sysctl.text("name");
        if name.is_empty() {
            errs.required(&at, "");
        } else if !string_rules::is_sysctl_name(name) {
            const SEGMENT: &str = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
            let regex = format!("^({SEGMENT}[\\./])*{SEGMENT}$");
            let detail = format!("must have at most 253 characters and match regex {regex}");
            errs.invalid(&at, name, &detail);
        } else if seen.contains(name) {
            errs.duplicate(&at, name);
        }
        seen.insert(name);
        let dotted = name.replace('/', ".");
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| dotted.starts_with(p))
            || dotted == "kernel.sem";
        if spec.flag("hostNetwork") && dotted.starts_with("net.") {
            errs.invalid(&at, name, "may not be specified when 'hostNetwork' is true");
        } else if spec.flag("hostIPC") && ipc {
            errs.invalid(&at, name, "may not be specified when 'hostIPC' is true");
        }
    }
}

fn seccomp(context: &Value, path: &Path, errs: &mut ErrorList) {
    let Some(profile) = context.at("seccompProfile") else { return };
    let kind = profile.text("type");
    match kind {
        "" => errs.required(&path.child("type"), "type is required when seccompProfile is set"),
        kind if !PROFILES.contains(&kind) => errs.unsupported(&path.child("type"), kind, PROFILES),
        _ => {}
    }
    let at = path.child("localhostProfile");
    match profile.opt_text("localhostProfile") {
        None if kind == "Localhost" => errs.required(&at, "must be set when seccomp type is Localhost"),
        Some(file) if kind == "Localhost" => descending_path(file, &at, errs),
        Some(_) => errs.invalid(&at, profile.clone(), "can only be set when seccomp type is Localhost"),
        None => {}
    }
}

fn app_armor(context: &Value, path: &Path, errs: &mut ErrorList) {
    const NEEDED: &str = "must be set when AppArmor type is Localhost";
    let Some(profile) = context.at("appArmorProfile") else { return };
    let at = path.child("localhostProfile");
    let name = profile.opt_text("localhostProfile");
    match profile.text("type") {
        "Localhost" => match name {
            None => errs.required(&at, NEEDED),
            Some(name) => {
                if name.trim() != name {
                    errs.invalid(&at, name, "must not be padded with whitespace");
                } else if name.is_empty() {
                    errs.required(&at, NEEDED);
                }
                if name.len() > 4095 {
                    errs.too_long(&at, 4095);
                }
            }
        },
        "RuntimeDefault" | "Unconfined" => {
            if let Some(name) = name {
                errs.invalid(&at, name, "can only be set when AppArmor type is Localhost");
            }
        }
        "" => errs.required(&path.child("type"), "type is required when appArmorProfile is set"),
        other => errs.unsupported(&path.child("type"), other, PROFILES),
    }
}

/// Checks that a pod with a user namespace (`hostUsers: false`) uses no host namespaces and no block devices.
pub fn host_users(spec: &Value, path: &Path, errs: &mut ErrorList) {
    const DETAIL: &str = "when `hostUsers` is false";
    if !spec.has("securityContext") || spec.opt_flag("hostUsers") != Some(false) {
        return;
    }
    for (key, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.flag(key) {
            errs.forbidden(&path.child(shown), DETAIL);
        }
    }
    for (container, at) in super::visit(spec, path) {
        if !container.items("volumeDevices").is_empty() {
            errs.forbidden(&at.child("volumeDevices"), DETAIL);
        }
    }
}
