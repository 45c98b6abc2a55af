//! Validation of containers, init containers (with sidecars, KEP-753) and ephemeral containers. Called by
//! `spec.rs`.

use std::collections::BTreeSet;

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::super::check::{self, PROTOCOLS, Report, dns_label};
use super::super::json_fields::{JsonFields, is_zero};
use super::volumes::Volumes;
use super::{env, mounts, probes, resources, security};

/// Parts of the pod that its containers are checked against.
pub struct Context<'a> {
    /// The pod's spec.
    pub spec: &'a Value,
    /// The pod's volumes that have no errors.
    pub volumes: &'a Volumes<'a>,
    /// Names in `spec.resourceClaims`.
    pub claims: BTreeSet<&'a str>,
}

const SIDECAR_ONLY: &str = "may not be set for init containers without restartPolicy=Always";

/// Validates `spec.containers`.
pub fn regular(context: &Context<'_>, path: &Path, errs: &mut ErrorList) {
    let containers = context.spec.items("containers");
    if containers.is_empty() {
        errs.required(path, "");
        return;
    }
    let mut names = BTreeSet::new();
    for (i, container) in containers.iter().enumerate() {
        let at = path.index(i);
        common(container, context, &at, errs);
        if !names.insert(container.text("name")) {
            errs.duplicate(&at.child("name"), container.text("name"));
        }
        if let Some(lifecycle) = container.at("lifecycle") {
            probes::lifecycle(lifecycle, context.spec, &at.child("lifecycle"), errs);
        }
        probes::probes(container, &at, errs);
        restart_rules(container, &at, errs);
    }
    host_ports(containers, path, errs);
}

/// Validates `spec.initContainers`.
pub fn init(context: &Context<'_>, path: &Path, errs: &mut ErrorList) {
    let mut names: BTreeSet<&str> = context.spec.items("containers").iter().map(|c| c.text("name")).collect();
    for (i, container) in context.spec.items("initContainers").iter().enumerate() {
        let at = path.index(i);
        common(container, context, &at, errs);
        init_restart_policy(container, &at, errs);
        let name = container.text("name");
        if names.contains(name) {
            errs.duplicate(&at.child("name"), name);
        } else if !name.is_empty() {
            names.insert(name);
        }
        host_ports(std::slice::from_ref(container), path, errs);
        if container.text("restartPolicy") == "Always" {
            if let Some(lifecycle) = container.at("lifecycle") {
                probes::lifecycle(lifecycle, context.spec, &at.child("lifecycle"), errs);
            }
            probes::probes(container, &at, errs);
        } else {
            for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if container.has(key) {
                    errs.forbidden(&at.child(key), SIDECAR_ONLY);
                }
            }
        }
    }
}

fn init_restart_policy(container: &Value, path: &Path, errs: &mut ErrorList) {
    let rules = container.items("restartPolicyRules");
    match container.opt_text("restartPolicy") {
        Some("Always") => {
            if !rules.is_empty() {
                errs.forbidden(
                    &path.child("restartPolicyRules"),
                    "restartPolicyRules are not allowed for init containers with restart policy Always",
                );
            }
        }
        _ => restart_rules(container, path, errs),
    }
}

/// Validates the restart policy and rules of one container (KEP-5307).
fn restart_rules(container: &Value, path: &Path, errs: &mut ErrorList) {
    const POLICIES: &[&str] = &["Always", "Never", "OnFailure"];
    let rules = container.items("restartPolicyRules");
    let at = path.child("restartPolicy");
    match container.opt_text("restartPolicy") {
        None if rules.is_empty() => return,
        None => errs.required(&at, "must specify restartPolicy when restart rules are used"),
        Some(policy) if !POLICIES.contains(&policy) => errs.unsupported(&at, policy, POLICIES),
        Some(_) => {}
    }
    let list = path.child("restartPolicyRules");
    if rules.len() > 20 {
        errs.too_long(&list, 20);
    }
    for (i, rule) in rules.iter().enumerate() {
        let at = list.index(i);
        if rule.text("action") != "Restart" {
            errs.unsupported(&at.child("action"), rule.text("action"), &["Restart"]);
        }
        let Some(codes) = rule.at("exitCodes") else {
            errs.required(&at.child("exitCodes"), "must be specified");
            continue;
        };
        let at = at.child("exitCodes");
        if !matches!(codes.text("operator"), "In" | "NotIn") {
            errs.unsupported(&at.child("operator"), codes.text("operator"), &["In", "NotIn"]);
        }
        if codes.items("values").len() > 255 {
            errs.too_long(&at.child("values"), 255);
        }
    }
}

/// Validates `spec.ephemeralContainers`.
pub fn ephemeral(context: &Context<'_>, path: &Path, errs: &mut ErrorList) {
    const ALLOWED: &[&str] = &[
        "name",
        "image",
        "command",
        "args",
        "workingDir",
        "envFrom",
        "env",
        "volumeMounts",
        "volumeDevices",
        "terminationMessagePath",
        "terminationMessagePolicy",
        "imagePullPolicy",
        "securityContext",
        "stdin",
        "stdinOnce",
        "tty",
        "targetContainerName",
    ];
    let spec = context.spec;
    let others: BTreeSet<&str> =
        spec.items("containers").iter().chain(spec.items("initContainers")).map(|c| c.text("name")).collect();
    let mut names = others.clone();
    for (i, container) in spec.items("ephemeralContainers").iter().enumerate() {
        let at = path.index(i);
        common(container, context, &at, errs);
        trimmed_image(container, &at, errs);
        let target = container.text("targetContainerName");
        if !names.insert(container.text("name")) {
            errs.duplicate(&at.child("name"), container.text("name"));
        }
        if !target.is_empty() && !others.contains(target) {
            errs.not_found(&at.child("targetContainerName"), target);
        }
        let fields = container.as_object().into_iter().flatten();
        for (key, _) in fields.filter(|(k, v)| !ALLOWED.contains(&k.as_str()) && !is_zero(v)) {
            errs.forbidden(&at.child(key), "cannot be set for an Ephemeral Container");
        }
        for (j, mount) in container.items("volumeMounts").iter().enumerate() {
            for key in ["subPath", "subPathExpr"] {
                if !mount.text(key).is_empty() {
                    let at = at.child("volumeMounts").index(j).child(key);
                    errs.forbidden(&at, "cannot be set for an Ephemeral Container");
                }
            }
        }
    }
}

fn common(container: &Value, context: &Context<'_>, path: &Path, errs: &mut ErrorList) {
    let name = container.text("name");
    if name.is_empty() {
        errs.required(&path.child("name"), "");
    } else {
        dns_label(name, &path.child("name"), errs);
    }
    check::required_text(container, "image", path, errs);
    check::one_of(
        container.text("terminationMessagePolicy"),
        &["File", "FallbackToLogsOnError"],
        &path.child("terminationMessagePolicy"),
        errs,
    );
    ports(container, &path.child("ports"), errs);
    env::variables(container, &path.child("env"), errs);
    env::sources(container, &path.child("envFrom"), errs);
    mounts::mounts(container, context.volumes, &path.child("volumeMounts"), errs);
    mounts::devices(container, context.volumes, &path.child("volumeDevices"), errs);
    pull_policy(container.text("imagePullPolicy"), &path.child("imagePullPolicy"), errs);
    resources::container(container.sub("resources"), &context.claims, &path.child("resources"), errs);
    resize_policy(container, context.spec.text("restartPolicy"), &path.child("resizePolicy"), errs);
    if let Some(security) = container.at("securityContext") {
        let host_users = context.spec.opt_flag("hostUsers").unwrap_or(true);
        security::container(security, host_users, &path.child("securityContext"), errs);
    }
}

/// Checks that an image pull policy is set and known.
pub fn pull_policy(policy: &str, path: &Path, errs: &mut ErrorList) {
    check::one_of(policy, &["Always", "IfNotPresent", "Never"], path, errs);
}

fn ports(container: &Value, path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, port) in container.items("ports").iter().enumerate() {
        let at = path.index(i);
        let name = port.text("name");
        if !name.is_empty() {
            let messages = names::port_name(name);
            if messages.is_empty() && !seen.insert(name) {
                errs.duplicate(&at.child("name"), name);
            }
            errs.each(&at.child("name"), name, messages);
        }
        match port.int("containerPort") {
            0 => errs.required(&at.child("containerPort"), ""),
            number => check::port_number(number, &at.child("containerPort"), errs),
        }
        if port.int("hostPort") != 0 {
            check::port_number(port.int("hostPort"), &at.child("hostPort"), errs);
        }
        check::one_of(port.text("protocol"), PROTOCOLS, &at.child("protocol"), errs);
    }
}

/// Checks that no two containers use the same host port.
fn host_ports(containers: &[Value], path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, container) in containers.iter().enumerate() {
        for (j, port) in container.items("ports").iter().enumerate() {
            let number = port.int("hostPort");
            if number == 0 {
                continue;
            }
            let key = format!("{}/{}/{number}", port.text("protocol"), port.text("hostIP"));
            if !seen.insert(key.clone()) {
                errs.duplicate(&path.index(i).child("ports").index(j).child("hostPort"), key);
            }
        }
    }
}

fn resize_policy(container: &Value, pod_policy: &str, path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, policy) in container.items("resizePolicy").iter().enumerate() {
        let (resource, restart) = (policy.text("resourceName"), policy.text("restartPolicy"));
        if !seen.insert(resource) {
            errs.duplicate(&path.index(i), resource);
        }
        check::one_of(resource, &["cpu", "memory"], path, errs);
        check::one_of(restart, &["NotRequired", "RestartContainer"], path, errs);
        if pod_policy == "Never" && restart != "NotRequired" {
            errs.invalid(path, restart, "must be 'NotRequired' when `restartPolicy` is 'Never'");
        }
    }
}

/// Checks that the images of a Pod have no white space around them.
pub fn trimmed_images(spec: &Value, key: &str, path: &Path, errs: &mut ErrorList) {
    for (i, container) in spec.items(key).iter().enumerate() {
        trimmed_image(container, &path.child(key).index(i), errs);
    }
}

fn trimmed_image(container: &Value, path: &Path, errs: &mut ErrorList) {
    let image = container.text("image");
    if image.trim() != image {
        errs.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
    }
}
