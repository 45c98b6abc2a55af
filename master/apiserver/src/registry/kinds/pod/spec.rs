//! Validation of a PodSpec in upstream's order. `mod.rs` calls it for Pods, `../template.rs` for templates.

use std::collections::BTreeSet;

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::super::check::{self, Report, dns_label, label_map, qualified_name};
use super::super::json_fields::{JsonFields, annotations};
use super::super::string_rules;
use super::containers::{self, Context};
use super::{PodValidationOptions, env, network, resources, scheduling, security, volumes, windows};

/// Validates a spec. `pod` is the whole object for a Pod and `None` for a template.
pub fn validate(
    spec: &Value,
    pod: Option<&Value>,
    path: &Path,
    options: PodValidationOptions,
    errs: &mut ErrorList,
) {
    if !spec.has("terminationGracePeriodSeconds") {
        errs.required(&path.child("terminationGracePeriodSeconds"), "");
    }
    let volumes = volumes::validate(spec, pod, &path.child("volumes"), options, errs);
    resource_claims(spec, pod, &path.child("resourceClaims"), errs);
    let claims: BTreeSet<&str> =
        spec.items("resourceClaims").iter().map(|c| c.text("name")).filter(|n| !n.is_empty()).collect();
    let context = Context { spec, volumes: &volumes, claims };
    containers::regular(&context, &path.child("containers"), errs);
    containers::init(&context, &path.child("initContainers"), errs);
    containers::ephemeral(&context, &path.child("ephemeralContainers"), errs);
    resources::pod_level(spec, &context.claims, path, errs);
    network::host_network_ports(spec, options.is_pod, path, errs);
    let policies = &["Always", "OnFailure", "Never"];
    check::one_of(spec.text("restartPolicy"), policies, &path.child("restartPolicy"), errs);
    network::dns_policy(spec, &path.child("dnsPolicy"), errs);
    label_map(spec.entries("nodeSelector"), &path.child("nodeSelector"), errs);
    security::pod(spec, &path.child("securityContext"), errs);
    scheduling::affinity(spec, &path.child("affinity"), errs);
    network::dns_config(spec, &path.child("dnsConfig"), errs);
    for (i, gate) in spec.items("readinessGates").iter().enumerate() {
        let at = path.child("readinessGates").index(i).child("conditionType");
        qualified_name(gate.text("conditionType"), &at, errs);
    }
    scheduling::gates(spec, &path.child("schedulingGates"), errs);
    scheduling::topology_spread(spec, &path.child("topologySpreadConstraints"), errs);
    windows::host_process(spec, path, errs);
    security::host_users(spec, path, errs);
    network::hostname_override(spec, path, errs);
    references(spec, path, errs);
    if spec.has("overhead") {
        resources::overhead(spec.entries("overhead"), &path.child("overhead"), errs);
    }
    windows::os(spec, path, errs);
    env::file_volumes(spec, path, errs);
}

/// Validates the plain fields that name other objects or hold one number.
fn references(spec: &Value, path: &Path, errs: &mut ErrorList) {
    for key in ["serviceAccountName", "nodeName"] {
        let name = spec.text(key);
        if !name.is_empty() {
            errs.each(&path.child(key), name, string_rules::object_name(name));
        }
    }
    if let Some(seconds) = spec.opt_int("activeDeadlineSeconds") {
        let at = path.child("activeDeadlineSeconds");
        check::in_range(seconds, 1, i64::from(i32::MAX), &at, errs);
    }
    network::host_names(spec, path, errs);
    scheduling::tolerations(spec.items("tolerations"), &path.child("tolerations"), errs);
    network::host_aliases(spec, &path.child("hostAliases"), errs);
    let class = spec.text("priorityClassName");
    if !class.is_empty() {
        for message in string_rules::object_name(class) {
            // As in upstream, an invalid class name is reported twice.
            errs.invalid(&path.child("priorityClassName"), class, &message);
            errs.invalid(&path.child("priorityClassName"), class, &message);
        }
    }
    if let Some(class) = spec.opt_text("runtimeClassName") {
        errs.each(&path.child("runtimeClassName"), class, string_rules::object_name(class));
    }
    if let Some(policy) = spec.opt_text("preemptionPolicy") {
        let policies = &["PreemptLowerPriority", "Never"];
        check::one_of(policy, policies, &path.child("preemptionPolicy"), errs);
    }
}

fn resource_claims(spec: &Value, pod: Option<&Value>, path: &Path, errs: &mut ErrorList) {
    let mirror = pod.is_some_and(|p| annotations(p).get(super::annotations::MIRROR).is_some());
    let mut seen = BTreeSet::new();
    for (i, claim) in spec.items("resourceClaims").iter().enumerate() {
        if mirror {
            errs.forbidden(&Path::root(), "static pods do not support resource claims");
            continue;
        }
        let at = path.index(i);
        let name = claim.text("name");
        if name.is_empty() {
            errs.required(&at.child("name"), "");
        } else if seen.insert(name) {
            dns_label(name, &at.child("name"), errs);
        } else {
            errs.duplicate(&at.child("name"), name);
        }
        let keys = ["resourceClaimName", "resourceClaimTemplateName"];
        match keys.iter().filter(|k| claim.has(k)).count() {
            0 => errs.invalid(
                &at,
                claim.clone(),
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
            2 => errs.invalid(
                &at,
                claim.clone(),
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
            _ => {}
        }
        for key in keys {
            if let Some(name) = claim.opt_text(key) {
                errs.each(&at.child(key), name, names::dns1123_subdomain(name));
            }
        }
    }
}
