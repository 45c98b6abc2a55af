//! The strategy of ServiceAccounts.

use serde_json::{Value, json};

use super::super::strategy::Strategy;
use super::json_fields::{self, JsonFields, items_mut};

/// The strategy of ServiceAccounts.
#[derive(Debug)]
pub struct ServiceAccountStrategy;

const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";

/// Removes everything but the name from the references in `secrets`.
fn clean_references(obj: &mut Value) {
    for secret in items_mut(obj, "secrets") {
        let name = secret.text("name").to_owned();
        *secret = if name.is_empty() { json!({}) } else { json!({"name": name}) };
    }
}

impl Strategy for ServiceAccountStrategy {
    fn prepare_for_create(&self, obj: &mut Value) {
        clean_references(obj);
    }

    fn prepare_for_update(&self, new: &mut Value, _old: &Value) {
        clean_references(new);
    }

    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        let has = |obj: &Value| json_fields::annotations(obj).get(ENFORCE).is_some();
        if !has(obj) || old.is_some_and(has) {
            return Vec::new();
        }
        vec![format!(
            "metadata.annotations[{ENFORCE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to \
             mounted secrets"
        )]
    }
}
