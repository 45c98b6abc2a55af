//! The strategy of Nodes.

use std::collections::{BTreeMap, BTreeSet};

use proto_api::field::{Error, ErrorList, Path};
use proto_api::names;
use serde_json::{Value, json};

use super::super::strategy::{Strategy, metadata_fields};
use super::check::{self, Report, legacy_cidr, qualified_name};
use super::ip;
use super::json_fields::{self, JsonFields, ensure, set_absent, unset};
use super::pod::resources::{quantity_of, resource_value};
use super::pod::scheduling::TAINT_EFFECTS;

/// The strategy of Nodes.
#[derive(Debug)]
pub struct NodeStrategy;

const TAINTS_ANNOTATION: &str = "scheduler.alpha.kubernetes.io/taints";
const CIDR_FIXED: &str = "node updates may not change podCIDR except from \"\" to valid";

/// Validates `spec.taints`; upstream reports its errors under `metadata`.
fn taints(taints: &[Value], path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, taint) in taints.iter().enumerate() {
        let at = path.index(i);
        let (key, value, effect) = (taint.text("key"), taint.text("value"), taint.text("effect"));
        qualified_name(key, &at.child("key"), errs);
        let messages = names::label_value(value);
        if !messages.is_empty() {
            errs.invalid(&at.child("value"), value, &messages.join(";"));
        }
        check::one_of(effect, TAINT_EFFECTS, &at.child("effect"), errs);
        if !seen.insert((effect, key)) {
            let mut error = Error::duplicate(&at, taint.clone());
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errs.push(error);
        }
    }
}

fn annotations(obj: &Value, errs: &mut ErrorList) {
    let path = Path::new("metadata").child("annotations");
    if let Some(text) = json_fields::annotations(obj).text(TAINTS_ANNOTATION).filter(|t| !t.is_empty()) {
        match serde_json::from_str::<Vec<Value>>(text) {
            Ok(list) => taints(&list, &path.child(TAINTS_ANNOTATION), errs),
            Err(error) => errs.invalid(&path, TAINTS_ANNOTATION, &error.to_string()),
        }
    }
}

fn amounts(obj: &Value, errs: &mut ErrorList) {
    for key in ["capacity", "allocatable"] {
        for (name, value) in obj.sub("status").entries(key).iter() {
            let at = Path::new("status").child(key).child(name);
            resource_value(name, &quantity_of(value), &at, errs);
        }
    }
}

fn validate_node(obj: &Value, errs: &mut ErrorList) {
    let (spec, meta) = (obj.sub("spec"), Path::new("metadata"));
    annotations(obj, errs);
    taints(spec.items("taints"), &meta.child("taints"), errs);
    amounts(obj, errs);
    let swap = obj.sub("status").sub("nodeInfo").sub("swap");
    if let Some(capacity) = swap.opt_int("capacity") {
        check::positive(capacity, &meta.child("nodeSwapStatus").child("capacity"), errs);
    }
    let cidrs = spec.texts("podCIDRs");
    let path = Path::new("spec").child("podCIDRs");
    for (i, cidr) in cidrs.iter().enumerate() {
        legacy_cidr(cidr, &path.index(i), &[], errs);
    }
    if cidrs.len() > 1 {
        let hosts: Vec<&str> = cidrs.iter().map(|c| c.split_once('/').map_or(*c, |(a, _)| a)).collect();
        if cidrs.len() > 2 || !ip::dual_stack(&hosts) {
            let detail = "may specify no more than one CIDR for each IP family";
            errs.invalid(&path, check::text_list(&cidrs), detail);
        }
    }
}

fn validate_change(new: &Value, old: &Value, errs: &mut ErrorList) {
    annotations(new, errs);
    amounts(new, errs);
    let mut seen = BTreeSet::new();
    for (i, address) in new.sub("status").items("addresses").iter().enumerate() {
        if !seen.insert((address.text("type"), address.text("address"))) {
            let at = Path::new("status").child("addresses").index(i);
            errs.duplicate(&at, address.clone());
        }
    }
    let path = Path::new("spec");
    let (spec, before) = (new.sub("spec"), old.sub("spec"));
    let (now, then) = (spec.texts("podCIDRs"), before.texts("podCIDRs"));
    if !then.is_empty() {
        let changes =
            if now.len() == then.len() { now.iter().zip(&then).filter(|(a, b)| a != b).count() } else { 1 };
        for _ in 0..changes {
            errs.forbidden(&path.child("podCIDRs"), CIDR_FIXED);
        }
    }
    let provider = before.text("providerID");
    if !provider.is_empty() && provider != spec.text("providerID") {
        let detail = "node updates may not change providerID except from \"\" to valid";
        errs.forbidden(&path.child("providerID"), detail);
    }
    taints(spec.items("taints"), &Path::new("metadata").child("taints"), errs);
    if spec.text("externalID") != before.text("externalID") {
        errs.forbidden(&path.child("externalID"), "may not be updated");
    }
}

impl Strategy for NodeStrategy {
    fn prepare_for_create(&self, obj: &mut Value) {
        if let Some(spec) = ensure(obj, "spec") {
            unset(spec, "configSource");
        }
        let Some(status) = ensure(obj, "status") else { return };
        unset(status, "config");
        unset(status, "declaredFeatures");
        set_absent(status, "daemonEndpoints", json!({"kubeletEndpoint": {"Port": 0}}));
        let Some(info) = ensure(status, "nodeInfo") else { return };
        for key in [
            "architecture",
            "bootID",
            "containerRuntimeVersion",
            "kernelVersion",
            "kubeProxyVersion",
            "kubeletVersion",
            "machineID",
            "operatingSystem",
            "osImage",
            "systemUUID",
        ] {
            set_absent(info, key, "");
        }
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        if let Some(spec) = new.get_mut("spec").filter(|_| !old.sub("spec").has("configSource")) {
            unset(spec, "configSource");
        }
    }

    fn validate(&self, obj: &Value, errs: &mut ErrorList) {
        validate_node(obj, errs);
    }

    fn validate_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        validate_node(new, errs);
        validate_change(new, old, errs);
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        validate_change(new, old, errs);
    }

    fn keeps_status_on_create(&self) -> bool {
        true
    }

    fn selectable_fields(&self, obj: &Value) -> BTreeMap<String, String> {
        let mut out = metadata_fields(obj);
        out.insert("spec.unschedulable".to_owned(), obj.sub("spec").flag("unschedulable").to_string());
        out
    }

    fn supported_field_labels(&self) -> &'static [&'static str] {
        &["metadata.name", "spec.unschedulable"]
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        let spec = obj.sub("spec");
        let mut out = Vec::new();
        if spec.has("configSource") {
            out.push("spec.configSource: the feature is removed".to_owned());
        }
        if !spec.text("externalID").is_empty() {
            out.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
        }
        for (i, cidr) in spec.texts("podCIDRs").iter().enumerate() {
            out.extend(ip::cidr_warnings(&Path::new("spec").child("podCIDRs").index(i), cidr));
        }
        out
    }
}
