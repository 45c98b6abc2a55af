//! Helpers for the tests of strategies: objects decoded and prepared as the API server does it, and the
//! errors of validation as text.

use proto_api::field::ErrorList;
use proto_api::kinds;
use serde_json::{Value, json};

use super::strategy_for;
use crate::decode::{FieldValidation, decode_object};

/// Returns an object as validation sees it on create. The kind's version is `v1`.
pub fn made(group: &str, resource: &str, sent: &Value) -> Value {
    let kind = kinds::by_resource(group, "v1", resource).expect("a served kind");
    let gvk = (group, "v1", kind.gvk.kind);
    let mut obj = decode_object(None, sent.to_string().as_bytes(), gvk, FieldValidation::Strict)
        .expect("the object decodes")
        .object;
    if obj["metadata"].is_null() {
        obj["metadata"] = json!({"name": "x", "namespace": "default"});
    }
    let strategy = strategy_for(group, resource);
    strategy.default(&mut obj);
    strategy.prepare_for_create(&mut obj);
    obj
}

fn texts(errs: &ErrorList) -> Vec<String> {
    errs.iter().map(ToString::to_string).collect()
}

/// Returns the errors of a create.
pub fn created(group: &str, resource: &str, sent: &Value) -> Vec<String> {
    let mut errs = ErrorList::default();
    strategy_for(group, resource).validate(&made(group, resource, sent), &mut errs);
    texts(&errs)
}

/// Returns the object that an update would write, and its errors.
pub fn updated(group: &str, resource: &str, old: &Value, sent: &Value) -> (Value, Vec<String>) {
    let strategy = strategy_for(group, resource);
    let mut new = made(group, resource, sent);
    new["status"] = old["status"].clone();
    new["metadata"] = sent.get("metadata").cloned().unwrap_or_else(|| old["metadata"].clone());
    strategy.prepare_for_update(&mut new, old);
    let mut errs = ErrorList::default();
    strategy.validate_update(&new, old, &mut errs);
    (new, texts(&errs))
}

/// Returns the errors of a status update.
pub fn reported(group: &str, resource: &str, old: &Value, status: Value) -> Vec<String> {
    let strategy = strategy_for(group, resource);
    let mut new = old.clone();
    new["status"] = status;
    strategy.prepare_for_status_update(&mut new, old);
    let mut errs = ErrorList::default();
    strategy.validate_status_update(&new, old, &mut errs);
    texts(&errs)
}

/// Returns a copy of `obj` with the value at a JSON pointer replaced, or removed where `value` is null.
pub fn with(obj: &Value, pointer: &str, value: Value) -> Value {
    let mut out = obj.clone();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let parent = out.pointer_mut(parent).expect("the parent exists");
    match (parent, value) {
        (Value::Object(map), Value::Null) => {
            map.remove(key);
        }
        (parent, value) => match key.parse::<usize>() {
            Ok(i) if parent.is_array() => parent[i] = value,
            _ => parent[key] = value,
        },
    }
    out
}
