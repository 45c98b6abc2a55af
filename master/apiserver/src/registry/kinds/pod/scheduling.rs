//! Validation of the fields that decide where a pod may run: node and pod affinity, tolerations, topology
//! spread, scheduling gates. Called by `spec.rs`; `update.rs` uses the rules of gated pods, `node.rs` those
//! of taints.

use std::collections::{BTreeMap, BTreeSet};

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::super::check::{self, Report, label_selector, positive, qualified_name};
use super::super::json_fields::JsonFields;
use super::super::string_rules;

/// Effects of taints, in the order upstream lists them.
pub const TAINT_EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Validates `spec.affinity`.
pub fn affinity(spec: &Value, path: &Path, errs: &mut ErrorList) {
    let affinity = spec.sub("affinity");
    if let Some(node) = affinity.at("nodeAffinity") {
        node_affinity(node, &path.child("nodeAffinity"), errs);
    }
    for key in ["podAffinity", "podAntiAffinity"] {
        if let Some(pods) = affinity.at(key) {
            pod_affinity(pods, &path.child(key), errs);
        }
    }
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn node_affinity(affinity: &Value, path: &Path, errs: &mut ErrorList) {
    if let Some(selector) = affinity.at(REQUIRED) {
        let terms = path.child(REQUIRED).child("nodeSelectorTerms");
        if selector.items("nodeSelectorTerms").is_empty() {
            errs.required(&terms, "must have at least one node selector term");
        }
        for (i, term) in selector.items("nodeSelectorTerms").iter().enumerate() {
            node_term(term, true, &terms.index(i), errs);
        }
    }
    for (i, preferred) in affinity.items(PREFERRED).iter().enumerate() {
        let at = path.child(PREFERRED).index(i);
        weight(preferred, &at, errs);
        node_term(preferred.sub("preference"), false, &at.child("preference"), errs);
    }
}

fn weight(term: &Value, path: &Path, errs: &mut ErrorList) {
    if !(1..=100).contains(&term.int("weight")) {
        errs.invalid(&path.child("weight"), term.int("weight"), "must be in the range 1-100");
    }
}

fn node_term(term: &Value, strict_values: bool, path: &Path, errs: &mut ErrorList) {
    for (i, requirement) in term.items("matchExpressions").iter().enumerate() {
        node_label(requirement, strict_values, &path.child("matchExpressions").index(i), errs);
    }
    for (i, requirement) in term.items("matchFields").iter().enumerate() {
        node_field(requirement, &path.child("matchFields").index(i), errs);
    }
}

fn node_label(requirement: &Value, strict_values: bool, path: &Path, errs: &mut ErrorList) {
    let values = requirement.texts("values");
    let at = path.child("values");
    match requirement.text("operator") {
        "In" | "NotIn" if values.is_empty() => {
            errs.required(&at, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errs.forbidden(&at, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        "Gt" | "Lt" if values.len() != 1 => {
            errs.required(&at, "must be specified single value when `operator` is 'Lt' or 'Gt'");
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errs.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    qualified_name(requirement.text("key"), &path.child("key"), errs);
    if strict_values {
        for (i, value) in values.iter().enumerate() {
            errs.each(&at.index(i), value, names::label_value(value));
        }
    }
}

fn node_field(requirement: &Value, path: &Path, errs: &mut ErrorList) {
    let values = requirement.texts("values");
    match requirement.text("operator") {
        "In" | "NotIn" => {
            if values.len() != 1 {
                let detail =
                    "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errs.required(&path.child("values"), detail);
            }
        }
        other => errs.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    let key = requirement.text("key");
    if key != "metadata.name" {
        errs.invalid(&path.child("key"), key, "not a valid field selector key");
        return;
    }
    for (i, value) in values.iter().enumerate() {
        errs.each(&path.child("values").index(i), value, string_rules::object_name(value));
    }
}

fn pod_affinity(affinity: &Value, path: &Path, errs: &mut ErrorList) {
    for (i, term) in affinity.items(REQUIRED).iter().enumerate() {
        pod_term(term, &path.child(REQUIRED).index(i), errs);
    }
    for (i, weighted) in affinity.items(PREFERRED).iter().enumerate() {
        let at = path.child(PREFERRED).index(i);
        weight(weighted, &at, errs);
        pod_term(weighted.sub("podAffinityTerm"), &at.child("podAffinityTerm"), errs);
    }
}

fn pod_term(term: &Value, path: &Path, errs: &mut ErrorList) {
    label_selector(term.sub("labelSelector"), &path.child("labelSelector"), errs);
    label_selector(term.sub("namespaceSelector"), &path.child("namespaceSelector"), errs);
    for namespace in term.texts("namespaces") {
        errs.each(&path.child("namespace"), namespace, names::dns1123_label(namespace));
    }
    label_keys(term, path, errs);
    let key = term.text("topologyKey");
    if key.is_empty() {
        errs.required(&path.child("topologyKey"), "can not be empty");
    }
    qualified_name(key, &path.child("topologyKey"), errs);
}

/// Validates `matchLabelKeys` and `mismatchLabelKeys` of an affinity term (KEP-3633).
fn label_keys(term: &Value, path: &Path, errs: &mut ErrorList) {
    let selector = term.at("labelSelector");
    for list in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = term.texts(list);
        let at = path.child(list);
        if !keys.is_empty() && selector.is_none() {
            errs.forbidden(&at, "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in keys.iter().enumerate() {
            qualified_name(key, &at.index(i), errs);
        }
    }
    let matching = term.texts("matchLabelKeys");
    if let Some(selector) = selector {
        let mut used: BTreeSet<&str> = selector.entries("matchLabels").iter().map(|(k, _)| k).collect();
        for expression in selector.items("matchExpressions") {
            let key = expression.text("key");
            if let Some(i) = matching.iter().rposition(|k| *k == key).filter(|_| used.contains(key)) {
                errs.invalid(&path.index(i), key, "exists in both matchLabelKeys and labelSelector");
            }
            used.insert(key);
        }
    }
    let mismatching = term.texts("mismatchLabelKeys");
    for (i, key) in matching.iter().enumerate().filter(|(_, k)| mismatching.contains(k)) {
        let detail = "exists in both matchLabelKeys and mismatchLabelKeys";
        errs.invalid(&path.child("matchLabelKeys").index(i), *key, detail);
    }
}

/// Validates `spec.tolerations`.
pub fn tolerations(list: &[Value], path: &Path, errs: &mut ErrorList) {
    for (i, toleration) in list.iter().enumerate() {
        let at = path.index(i);
        let (key, operator) = (toleration.text("key"), toleration.text("operator"));
        let (value, effect) = (toleration.text("value"), toleration.text("effect"));
        if !key.is_empty() {
            qualified_name(key, &at.child("key"), errs);
        }
        let operator_path = at.child("operator");
        if key.is_empty() && operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errs.invalid(&operator_path, operator, detail);
        }
        if toleration.has("tolerationSeconds") && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errs.invalid(&at.child("effect"), effect, detail);
        }
        match operator {
            "" | "Equal" => {
                let messages = names::label_value(value);
                if !messages.is_empty() {
                    errs.invalid(&operator_path, value, &messages.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                errs.invalid(&operator_path, value, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            "Lt" | "Gt" => errs.unsupported(&operator_path, operator, &["Equal", "Exists", "Lt", "Gt"]),
            other => errs.unsupported(&operator_path, other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() && !TAINT_EFFECTS.contains(&effect) {
            errs.unsupported(&at.child("effect"), effect, TAINT_EFFECTS);
        }
    }
}

/// Validates `spec.topologySpreadConstraints`.
pub fn topology_spread(spec: &Value, path: &Path, errs: &mut ErrorList) {
    let constraints = spec.items("topologySpreadConstraints");
    let names = |constraint: &Value| {
        (constraint.text("topologyKey").to_owned(), constraint.text("whenUnsatisfiable").to_owned())
    };
    let last: BTreeMap<(String, String), usize> =
        constraints.iter().enumerate().map(|(i, constraint)| (names(constraint), i)).collect();
    for (i, constraint) in constraints.iter().enumerate() {
        let at = path.index(i);
        let (key, action) = (constraint.text("topologyKey"), constraint.text("whenUnsatisfiable"));
        positive(constraint.int("maxSkew"), &at.child("maxSkew"), errs);
        if key.is_empty() {
            errs.required(&at.child("topologyKey"), "can not be empty");
        }
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            errs.unsupported(&at.child("whenUnsatisfiable"), action, &["DoNotSchedule", "ScheduleAnyway"]);
        }
        if last.get(&names(constraint)).is_some_and(|last| *last > i) {
            errs.duplicate(&at.child("{topologyKey, whenUnsatisfiable}"), format!("{{{key}, {action}}}"));
        }
        if let Some(domains) = constraint.opt_int("minDomains") {
            let at = at.child("minDomains");
            positive(domains, &at, errs);
            if action != "DoNotSchedule" {
                let detail =
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errs.invalid(&at, domains, &detail);
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            check::opt_one_of(constraint, policy, &["Honor", "Ignore"], &at, errs);
        }
        label_keys(constraint, &at, errs);
        label_selector(constraint.sub("labelSelector"), &at.child("labelSelector"), errs);
    }
}

/// Validates `spec.schedulingGates`.
pub fn gates(spec: &Value, path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, gate) in spec.items("schedulingGates").iter().enumerate() {
        let name = gate.text("name");
        qualified_name(name, &path.index(i), errs);
        if !seen.insert(name) {
            errs.duplicate(&path.index(i), name);
        }
    }
}
