//! Validation of `spec.os` and of the Windows options in security contexts. Ephor runs no Windows nodes, but
//! manifests for Windows get stock Kubernetes' answers.

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::super::check::Report;
use super::super::json_fields::JsonFields;

/// Validates `spec.os`, and that no fields are set which that system does not support.
pub fn os(spec: &Value, path: &Path, errs: &mut ErrorList) {
    let Some(os) = spec.at("os") else { return };
    match os.text("name") {
        "" => errs.required(&path.child("os").child("name"), ""),
        "linux" => linux(spec, path, errs),
        "windows" => windows(spec, path, errs),
        other => errs.unsupported(&path.child("os"), other, &["linux", "windows"]),
    }
}

fn linux(spec: &Value, path: &Path, errs: &mut ErrorList) {
    const DETAIL: &str = "windows options cannot be set for a linux pod";
    let mut check = |context: &Value, at: Path| {
        if context.has("windowsOptions") {
            errs.forbidden(&at.child("securityContext").child("windowsOptions"), DETAIL);
        }
    };
    check(spec.sub("securityContext"), path.clone());
    for (container, at) in super::visit(spec, path) {
        check(container.sub("securityContext"), at);
    }
}

fn windows(spec: &Value, path: &Path, errs: &mut ErrorList) {
    const DETAIL: &str = "cannot be set for a windows pod";
    const CONTAINER: &[&str] = &[
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    if let Some(context) = spec.at("securityContext") {
        let at = path.child("securityContext");
        let inner = |keys: &[&str], errs: &mut ErrorList| {
            for key in keys.iter().filter(|k| context.has(k)) {
                errs.forbidden(&at.child(key), DETAIL);
            }
        };
        inner(&["appArmorProfile", "seLinuxOptions"], errs);
        for key in ["hostUsers", "hostPID", "hostIPC"] {
            if if key == "hostUsers" { spec.has(key) } else { spec.flag(key) } {
                errs.forbidden(&path.child(key), DETAIL);
            }
        }
        inner(&["seccompProfile", "fsGroup", "fsGroupChangePolicy"], errs);
        if !context.items("sysctls").is_empty() {
            errs.forbidden(&at.child("sysctls"), DETAIL);
        }
        if spec.has("shareProcessNamespace") {
            errs.forbidden(&path.child("shareProcessNamespace"), DETAIL);
        }
        inner(&["runAsUser", "runAsGroup", "supplementalGroups"], errs);
        inner(&["supplementalGroupsPolicy", "seLinuxChangePolicy"], errs);
    }
    for (container, at) in super::visit(spec, path) {
        let context = container.sub("securityContext");
        for key in CONTAINER.iter().filter(|k| context.has(k)) {
            errs.forbidden(&at.child("securityContext").child(key), DETAIL);
        }
    }
}

/// Validates the `windowsOptions` of a security context.
pub fn options(options: &Value, path: &Path, errs: &mut ErrorList) {
    if let Some(name) = options.opt_text("gmsaCredentialSpecName") {
        errs.each(&path.child("gmsaCredentialSpecName"), name, names::dns1123_subdomain(name));
    }
    if let Some(spec) = options.opt_text("gmsaCredentialSpec") {
        let at = path.child("gmsaCredentialSpec");
        if spec.is_empty() {
            errs.invalid(&at, spec, "gmsaCredentialSpec cannot be an empty string");
        } else if spec.len() > 64 * 1024 {
            errs.invalid(&at, spec, "gmsaCredentialSpec size must be under 64 KiB");
        }
    }
    if let Some(name) = options.opt_text("runAsUserName") {
        for detail in user_name(name) {
            errs.invalid(&path.child("runAsUserName"), name, detail);
        }
    }
}

fn user_name(name: &str) -> Vec<&'static str> {
    if name.is_empty() {
        return vec!["runAsUserName cannot be an empty string"];
    }
    if name.chars().any(|c| c.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters"];
    }
    let parts: Vec<&str> = name.split('\\').collect();
    let (domain, user) = match parts[..] {
        [user] => (None, user),
        [domain, user] => (Some(domain), user),
        _ => return vec!["runAsUserName cannot contain more than one backslash"],
    };
    let mut out = Vec::new();
    if domain.is_some_and(|d| d.len() >= 256) {
        out.push("runAsUserName's Domain length must be under 256 characters");
    }
    if domain.is_some_and(|d| !is_net_bios(d) && !is_dns_domain(d)) {
        out.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format");
    }
    if user.is_empty() {
        out.push("runAsUserName's User cannot be empty");
    } else if user.len() > 104 {
        out.push("runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        out.push("runAsUserName's User cannot contain only periods or spaces");
    }
    if user.contains(|c| "\"/\\:;|=,+*?<>@[]".contains(c)) {
        out.push("runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]");
    }
    out
}

fn is_net_bios(domain: &str) -> bool {
    let bad = |c: char| "\\/:*?\"<>|".contains(c);
    (1..=15).contains(&domain.chars().count()) && !domain.starts_with('.') && !domain.contains(bad)
}

fn is_dns_domain(domain: &str) -> bool {
    domain.split('.').all(|label| names::dns1123_label(&label.to_lowercase()).is_empty())
}

/// Checks that either all containers are HostProcess containers or none, and that such a pod uses the host
/// network.
pub fn host_process(spec: &Value, path: &Path, errs: &mut ErrorList) {
    let option = |context: &Value| context.sub("windowsOptions").opt_flag("hostProcess");
    let whole = option(spec.sub("securityContext"));
    let (mut total, mut host) = (0, 0);
    for (container, at) in super::visit(spec, path) {
        total += 1;
        let own = option(container.sub("securityContext"));
        if let (Some(whole), Some(own)) = (whole, own)
            && whole != own
        {
            let at = at.child("securityContext").child("windowsOptions").child("hostProcess");
            let detail =
                format!("pod hostProcess value must be identical if both are specified, was {whole}");
            errs.invalid(&at, own, &detail);
        }
        if own.or(whole) == Some(true) {
            host += 1;
        }
    }
    if host == 0 {
        return;
    }
    if host != total {
        let detail =
            "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errs.invalid(path, "", detail);
    }
    if !spec.flag("hostNetwork") {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        errs.invalid(&path.child("hostNetwork"), false, detail);
    }
}
