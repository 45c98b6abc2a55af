//! The strategy of Namespaces, and the rules of their `finalize` subresource.

use std::collections::BTreeMap;

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::{Value, json};

use super::super::strategy::{NameRule, Strategy, metadata_fields};
use super::check::Report;
use super::json_fields::{self, JsonFields, ensure, keep, set};

/// The strategy of Namespaces.
#[derive(Debug)]
pub struct NamespaceStrategy;

/// Finalizer that the namespace controller removes once the namespace is empty.
const FINALIZER: &str = "kubernetes";
/// Label that holds the namespace's name, for namespace selectors.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

fn set_name_label(obj: &mut Value) {
    let name = json_fields::name(obj).to_owned();
    if name.is_empty() {
        return;
    }
    if let Some(labels) = ensure(obj, "metadata").and_then(|m| ensure(m, "labels")) {
        set(labels, NAME_LABEL, name);
    }
}

fn finalizers(obj: &Value, indexed: bool, errs: &mut ErrorList) {
    let path = Path::new("spec").child("finalizers");
    for (i, name) in obj.sub("spec").texts("finalizers").into_iter().enumerate() {
        let at = if indexed { path.index(i) } else { path.clone() };
        errs.each(&at, name, names::qualified_name(name));
        if !name.contains('/') && !matches!(name, "kubernetes" | "orphan" | "foregroundDeletion") {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errs.invalid(&at, name, detail);
        }
    }
}

/// Validates what the `finalize` subresource writes; everything but `spec` is kept by the caller.
pub fn validate_finalize(obj: &Value, errs: &mut ErrorList) {
    finalizers(obj, true, errs);
}

impl Strategy for NamespaceStrategy {
    fn prepare_for_create(&self, obj: &mut Value) {
        set_name_label(obj);
        set(obj, "status", json!({"phase": "Active"}));
        let Some(spec) = ensure(obj, "spec") else { return };
        let mut list = spec.items("finalizers").to_vec();
        if !list.iter().any(|f| f == FINALIZER) {
            list.push(Value::from(FINALIZER));
        }
        set(spec, "finalizers", list);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        if let Some(spec) = ensure(new, "spec") {
            keep(spec, old.sub("spec"), "finalizers");
        }
    }

    fn validate(&self, obj: &Value, errs: &mut ErrorList) {
        finalizers(obj, false, errs);
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errs: &mut ErrorList) {
        let phase = new.sub("status").text("phase");
        let path = Path::new("status").child("Phase");
        match (new.sub("metadata").has("deletionTimestamp"), phase) {
            (false, "Active") | (true, "Terminating") => {}
            (false, _) => {
                errs.invalid(&path, phase, "may only be 'Active' if `deletionTimestamp` is empty");
            }
            (true, _) => {
                errs.invalid(&path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
            }
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Dns1123Label
    }

    fn selectable_fields(&self, obj: &Value) -> BTreeMap<String, String> {
        let mut out = metadata_fields(obj);
        out.insert("status.phase".to_owned(), obj.sub("status").text("phase").to_owned());
        out
    }

    fn supported_field_labels(&self) -> &'static [&'static str] {
        &["metadata.name", "status.phase"]
    }
}
