//! Validation of a Pod's status as the node, the scheduler and the controllers write it. Called by `mod.rs`.

use std::collections::BTreeSet;

use proto_api::field::{ErrorList, Path};
use serde_json::Value;

use super::super::check::{self, Report, id_number, legacy_ip, qualified_name};
use super::super::ip;
use super::super::json_fields::JsonFields;
use super::super::string_rules;

/// Validates `status` against the stored object.
pub fn validate(new: &Value, old: &Value, errs: &mut ErrorList) {
    let spec = new.sub("spec");
    super::update_annotations(new, old, errs);
    let (status, before) = (new.sub("status"), old.sub("status"));
    let path = Path::new("status");
    conditions(status, &path.child("conditions"), errs);
    nominated_node(status, old, &path.child("nominatedNodeName"), errs);
    if status.int("observedGeneration") < 0 {
        let at = path.child("observedGeneration");
        errs.invalid(&at, status.int("observedGeneration"), "must be a non-negative integer");
    }
    if status.text("qosClass") != before.text("qosClass") {
        errs.invalid(&path.child("qosClass"), status.text("qosClass"), check::IMMUTABLE);
    }
    for (key, containers) in [
        ("containerStatuses", Some("containers")),
        ("initContainerStatuses", Some("initContainers")),
        ("ephemeralContainerStatuses", None),
    ] {
        transitions(status, old, key, containers, &path.child(key), errs);
    }
    claim_statuses(status, spec, &path.child("resourceClaimStatuses"), errs);
    addresses(status, before, "podIPs", &path, errs);
    addresses(status, before, "hostIPs", &path, errs);
    for key in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        users(status, spec, key, &path.child(key), errs);
    }
    for (i, container) in status.items("ephemeralContainerStatuses").iter().enumerate() {
        if !container.items("allocatedResourcesStatus").is_empty() {
            let at = path.child("ephemeralContainerStatuses").index(i).child("allocatedResourcesStatus");
            errs.forbidden(&at, "must not be specified in container status");
        }
    }
}

fn conditions(status: &Value, path: &Path, errs: &mut ErrorList) {
    for (i, condition) in status.items("conditions").iter().enumerate() {
        let generation = condition.int("observedGeneration");
        if generation < 0 {
            let at = path.index(i).child("observedGeneration");
            errs.invalid(&at, generation, "must be a non-negative integer");
        }
        let kind = condition.text("type");
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            qualified_name(kind, &path.index(i).child("Type"), errs);
        }
    }
}

fn nominated_node(status: &Value, old: &Value, path: &Path, errs: &mut ErrorList) {
    let name = status.text("nominatedNodeName");
    if name.is_empty() || name == old.sub("status").text("nominatedNodeName") {
        return;
    }
    errs.each(path, name, string_rules::object_name(name));
    if !old.sub("spec").text("nodeName").is_empty() {
        errs.forbidden(path, "may not be set on pods that are already bound to a node");
    }
}

/// Checks that a terminated container runs again only where its restart policy allows that.
fn transitions(
    status: &Value,
    old: &Value,
    key: &str,
    containers: Option<&str>,
    path: &Path,
    errs: &mut ErrorList,
) {
    for (i, before) in old.sub("status").items(key).iter().enumerate() {
        let Some(terminated) = before.sub("state").at("terminated") else { continue };
        let name = before.text("name");
        let alive = |s: &&Value| s.text("name") == name && !s.sub("state").has("terminated");
        if status.items(key).iter().find(alive).is_none() {
            continue;
        }
        let spec = old.sub("spec");
        let restarts = containers
            .and_then(|list| spec.items(list).iter().find(|c| c.text("name") == name))
            .is_some_and(|c| may_restart(c, spec, terminated.int("exitCode")));
        if !restarts {
            errs.forbidden(&path.index(i).child("state"), "may not be transitioned to non-terminated state");
        }
    }
}

fn may_restart(container: &Value, spec: &Value, exit_code: i64) -> bool {
    if let Some(policy) = container.opt_text("restartPolicy") {
        let matched = container.items("restartPolicyRules").iter().any(|rule| {
            let codes = rule.sub("exitCodes");
            let listed = codes.items("values").iter().any(|v| v.as_i64() == Some(exit_code));
            rule.has("exitCodes") && listed == (codes.text("operator") == "In")
        });
        return matched || by_policy(policy, exit_code);
    }
    by_policy(spec.text("restartPolicy"), exit_code)
}

fn by_policy(policy: &str, exit_code: i64) -> bool {
    match policy {
        "Always" => true,
        "OnFailure" => exit_code != 0,
        _ => false,
    }
}

fn claim_statuses(status: &Value, spec: &Value, path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, claim) in status.items("resourceClaimStatuses").iter().enumerate() {
        let at = path.index(i).child("name");
        let name = claim.text("name");
        if !spec.items("resourceClaims").iter().any(|c| c.text("name") == name) {
            errs.invalid(&at, name, "must match the name of an entry in `spec.resourceClaims`");
        }
        if !seen.insert(name) {
            errs.duplicate(&at, name);
        }
        if let Some(claim) = claim.opt_text("resourceClaimName") {
            errs.each(&at, claim, string_rules::object_name(claim));
        }
    }
}

fn addresses(status: &Value, before: &Value, key: &str, path: &Path, errs: &mut ErrorList) {
    let list = |status: &Value| -> Vec<String> {
        status.items(key).iter().map(|a| a.text("ip").to_owned()).collect()
    };
    let (now, known) = (list(status), list(before));
    let at = path.child(key);
    if let Some(first) = now.first().filter(|f| key == "hostIPs" && *f != status.text("hostIP")) {
        errs.invalid(&at.index(0).child("ip"), first.as_str(), "must be equal to `hostIP`");
    }
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    for (i, address) in now.iter().enumerate() {
        legacy_ip(address, &at.index(i), &known, errs);
    }
    let now: Vec<&str> = now.iter().map(String::as_str).collect();
    if now.len() > 1 && (now.len() > 2 || !ip::dual_stack(&now)) {
        let detail = "may specify no more than one IP for each IP family";
        errs.invalid(&at, status.sub(key).clone(), detail);
    }
}

fn users(status: &Value, spec: &Value, key: &str, path: &Path, errs: &mut ErrorList) {
    let windows = spec.sub("os").text("name") == "windows";
    for (i, container) in status.items(key).iter().enumerate() {
        let Some(user) = container.sub("user").at("linux") else { continue };
        let at = path.index(i).child("user").child("linux");
        if windows {
            errs.forbidden(&at, "cannot be set for a windows pod");
            continue;
        }
        for id in ["uid", "gid"] {
            id_number(user.int(id), &at.child(id), errs);
        }
        for (j, group) in user.items("supplementalGroups").iter().enumerate() {
            let at = at.child("supplementalGroups").index(j);
            id_number(group.as_i64().unwrap_or_default(), &at, errs);
        }
    }
}
