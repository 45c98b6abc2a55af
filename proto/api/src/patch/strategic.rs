//! Strategic merge patch, as in `k8s.io/apimachinery/pkg/util/strategicpatch`: `$patch`, `$retainKeys`,
//! `$deleteFromPrimitiveList/`, `$setElementOrder/`, and lists merged by the merge keys of the schema
//! table.

use serde_json::{Map, Value};

use super::order;
use crate::go;
use crate::schema::{Field, StructId, Table, Type, bare};

/// Maximum number of comparisons in one list, whose items are found by comparing them all.
const MERGE_COMPARISONS_MAX: usize = 4_000_000;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;

/// Why a patch cannot be applied; the API server answers 400, 422 or 500, in the order of these variants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The patch is not in the form of a strategic merge patch.
    #[error("{0}")]
    Format(&'static str),
    /// The content of the patch cannot be merged into the object.
    #[error("{0}")]
    Content(&'static str),
    /// An error of the server itself.
    #[error("{0}")]
    Other(String),
}

const BAD_PRIMITIVES: Error = Error::Format("invalid patch format of primitive list");
const BAD_RETAIN: Error = Error::Format("invalid patch format of retainKeys");
const BAD_ORDER: Error = Error::Format("invalid patch format of setElementOrder list");
const LIST_OF_LISTS: Error = Error::Content("lists of lists are not supported");

/// Applies a patch to an object of a struct type.
pub fn strategic_merge(of: StructId, original: Object, patch: Object) -> Result<Object, Error> {
    merge_map(original, patch, &Type::Struct(of))
}

fn field<'a>(of: &'a Type, key: &str) -> Result<&'a Field, Error> {
    match bare(of) {
        Type::Struct(id) => {
            let of = Table::get().at(*id);
            of.field(key).ok_or_else(|| {
                let (key, name) = (go::quote(key), of.go_name());
                Error::Other(format!("unable to find api field in struct {name} for the json field {key}"))
            })
        }
        _ => {
            Err(Error::Other("merging an object in json but data type is not struct, instead is: map".into()))
        }
    }
}

/// Returns the patch strategy of a field apart from `retainKeys`; empty if there is none.
fn strategy(field: &Field) -> &'static str {
    field.patch_strategy.split(',').find(|s| *s != "retainKeys").unwrap_or_default()
}

fn item_type(of: &Type) -> &Type {
    match bare(of) {
        Type::List(item) => item,
        other => other,
    }
}

fn missing_key(object: &Object, key: &str) -> Error {
    let object = go::json(&Value::Object(object.clone()));
    Error::Other(format!("map: {object} does not contain declared merge key: {key}"))
}

fn merge_map(mut original: Object, mut patch: Object, of: &Type) -> Result<Object, Error> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => Err(Error::Other(format!("unknown patch type: {} in map", go::json(&directive)))),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_orders(&mut original, &mut patch, of)?;
    for (key, value) in patch {
        let (key, deleting) = match key.strip_prefix(DELETE_FROM) {
            Some(rest) => (rest.to_owned(), true),
            None if key.starts_with(DELETE_FROM.trim_end_matches('/')) => return Err(BAD_PRIMITIVES),
            None => (key, false),
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let Some(old) = original.remove(&key) else {
            if !deleting {
                insert_clean(&mut original, key, value);
            }
            continue;
        };
        match (old, value) {
            (Value::Object(old), Value::Object(new)) => {
                let field = field(of, &key)?;
                let merged = if strategy(field) == "replace" { new } else { merge_map(old, new, &field.of)? };
                original.insert(key, Value::Object(merged));
            }
            (Value::Array(old), Value::Array(new)) => {
                let field = field(of, &key)?;
                let merged = if strategy(field) == "merge" || deleting {
                    merge_list(old, new, field, deleting)?
                } else {
                    new
                };
                original.insert(key, Value::Array(merged));
            }
            (old, _) if deleting => {
                original.insert(key, old);
            }
            (_, new) => insert_clean(&mut original, key, new),
        }
    }
    Ok(original)
}

/// Inserts a new value without its nulls and its members with directives.
fn insert_clean(original: &mut Object, key: String, mut value: Value) {
    discard_nulls(&mut value);
    if let Some(value) = without_directives(value) {
        original.insert(key, value);
    }
}

fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, v| !v.is_null());
            members.values_mut().for_each(discard_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(discard_nulls),
        _ => {}
    }
}

fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(members) if members.contains_key(DIRECTIVE) => None,
        Value::Object(members) => {
            let kept = members.into_iter().filter_map(|(k, v)| without_directives(v).map(|v| (k, v)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        other => Some(other),
    }
}

/// Applies `$retainKeys`: drops every key of the original that it does not list.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Error> {
    let Some(list) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let keys: Vec<&str> = list.as_array().ok_or(BAD_RETAIN)?.iter().filter_map(Value::as_str).collect();
    for (key, value) in patch.iter() {
        if value.is_null() || key.starts_with(DELETE_FROM) || key.starts_with(SET_ORDER) {
            continue;
        }
        if !keys.contains(&key.as_str()) {
            return Err(BAD_RETAIN);
        }
    }
    original.retain(|key, _| keys.contains(&key.as_str()));
    Ok(())
}

/// Applies `$setElementOrder/LIST`: merges the list and puts it into the requested order.
fn set_orders(original: &mut Object, patch: &mut Object, of: &Type) -> Result<(), Error> {
    let keys: Vec<String> =
        patch.keys().filter(|k| k.starts_with(SET_ORDER.trim_end_matches('/'))).cloned().collect();
    for directive in keys {
        let wanted = patch.remove(&directive).unwrap_or_default();
        let Value::Array(wanted) = wanted else {
            return Err(Error::Other("expected a list of element orders".into()));
        };
        let key = directive.strip_prefix(SET_ORDER).ok_or(BAD_ORDER)?;
        let field = field(of, key)?;
        let list = |value: Option<Value>| match value {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(_) => Err(Error::Other(format!("expected a list in {}", go::quote(key)))),
        };
        let old = list(original.get(key).cloned())?;
        let new = list(patch.remove(key))?;
        order::check(new.as_deref().unwrap_or_default(), &wanted, field.merge_key)?;
        let live = old.clone().unwrap_or_default();
        let merged = match (old, new) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => new.into_iter().filter_map(without_directives).collect(),
            (Some(old), Some(new)) if strategy(field) == "merge" => merge_list(old, new, field, false)?,
            (Some(_), Some(new)) => new,
        };
        if (merged.len() + live.len()).saturating_mul(wanted.len()) > MERGE_COMPARISONS_MAX {
            return Err(Error::Other("the lists are too long to be merged".into()));
        }
        original
            .insert(key.to_owned(), Value::Array(order::arrange(merged, &wanted, &live, field.merge_key)));
    }
    Ok(())
}

fn merge_list(old: Vec<Value>, new: Vec<Value>, field: &Field, deleting: bool) -> Result<Vec<Value>, Error> {
    let Some(first) = old.first().or(new.first()) else { return Ok(old) };
    if first.is_array() {
        return Err(LIST_OF_LISTS);
    }
    let maps = first.is_object();
    if old.iter().chain(&new).any(|v| v.is_object() != maps) {
        return Err(Error::Other("list element types are not identical".into()));
    }
    if (old.len() + new.len()).saturating_mul(new.len()) > MERGE_COMPARISONS_MAX {
        return Err(Error::Other("the lists are too long to be merged".into()));
    }
    let live = old.clone();
    if !maps {
        if deleting {
            return Ok(old.into_iter().filter(|v| !new.contains(v)).collect());
        }
        let mut merged: Vec<Value> = Vec::new();
        for value in old.into_iter().chain(new.iter().cloned()) {
            if !merged.contains(&value) {
                merged.push(value);
            }
        }
        return Ok(order::arrange(merged, &new, &live, None));
    }
    let key = field
        .merge_key
        .ok_or_else(|| Error::Other(format!("cannot merge lists without merge key for {}", field.name)))?;
    let merged = merge_objects(old, new.clone(), key, item_type(&field.of))?;
    let order: Vec<Value> = new.into_iter().filter(|v| v.get(DIRECTIVE).is_none()).collect();
    Ok(order::arrange(merged, &order, &live, Some(key)))
}

fn merge_objects(mut old: Vec<Value>, new: Vec<Value>, key: &str, item: &Type) -> Result<Vec<Value>, Error> {
    let mut plain: Vec<Object> = Vec::new();
    let mut replace = false;
    for value in new {
        let Value::Object(object) = value else { continue };
        let Some(directive) = object.get(DIRECTIVE) else {
            plain.push(object);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let id = object.get(key).ok_or_else(|| missing_key(&object, key))?;
                old.retain(|v| v.get(key) != Some(id));
            }
            Some("replace") => replace = true,
            Some("merge") => {
                return Err(Error::Other("merging lists cannot yet be specified in the patch".into()));
            }
            _ => return Err(Error::Other(format!("unknown patch type: {} in map", go::json(directive)))),
        }
    }
    if replace {
        return Ok(plain.into_iter().map(Value::Object).collect());
    }
    for object in plain {
        let id = object.get(key).cloned().ok_or_else(|| missing_key(&object, key))?;
        match old.iter_mut().find(|v| v.get(key) == Some(&id)) {
            Some(found) => {
                let current = found.as_object_mut().map(std::mem::take).unwrap_or_default();
                *found = Value::Object(merge_map(current, object, item)?);
            }
            None => {
                let mut value = Value::Object(object);
                discard_nulls(&mut value);
                old.push(value);
            }
        }
    }
    Ok(old)
}

#[cfg(test)]
#[path = "strategic_tests.rs"]
mod tests;
