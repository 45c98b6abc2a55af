//! Defaults, as stock Kubernetes 1.35 sets them after decoding. They have three sources, applied to every
//! struct from the outside in: code (`rules`), rows written by hand (`rows`), and the `+default` markers of
//! the table. A recorded stock server is compared with the result.

mod image;
mod rows;
mod rules;

use serde_json::{Map, Value};

use super::{Schema, StructId, Table, Type};
use crate::quantity::Quantity;

/// Sets the defaults of a decoded object of a kind (see [`super::decode`]).
pub fn apply_defaults(schema: Schema, value: &mut Value) {
    visit(&Type::Struct(schema.id()), value);
}

fn visit(of: &Type, value: &mut Value) {
    match (of, value) {
        (Type::Named { name: "core/v1.ResourceList", .. }, Value::Object(list)) => round_to_milli(list),
        (Type::Pointer(inner) | Type::Named { of: inner, .. }, value) => visit(inner, value),
        (Type::List(inner), Value::Array(items)) => items.iter_mut().for_each(|item| visit(inner, item)),
        (Type::Map(inner), Value::Object(members)) => {
            members.values_mut().for_each(|item| visit(inner, item));
        }
        (Type::Struct(id), Value::Object(members)) => visit_struct(*id, members),
        _ => {}
    }
}

fn visit_struct(id: StructId, members: &mut Map<String, Value>) {
    let of = Table::get().at(id);
    rules::apply(of.name, members);
    for (field, json) in rows::of(of.name) {
        set_default(members, field, json);
    }
    for field in &of.fields {
        if let Some(json) = field.default {
            set_default(members, field.name, json);
        }
        let inline = matches!(unnamed(&field.of), Type::Struct(_));
        match members.get_mut(field.name) {
            Some(value) => visit(&field.of, value),
            // A struct that is no pointer exists even if it was not written.
            None if inline && !is_metadata(&field.of) => {
                let mut value = Value::Object(Map::new());
                visit(&field.of, &mut value);
                if value.as_object().is_some_and(|v| !v.is_empty()) {
                    members.insert(field.name.to_owned(), value);
                }
            }
            None => {}
        }
    }
}

fn unnamed(of: &Type) -> &Type {
    match of {
        Type::Named { of: inner, .. } => unnamed(inner),
        other => other,
    }
}

fn is_metadata(of: &Type) -> bool {
    matches!(of, Type::Struct(id) if Table::get().at(*id).name.starts_with("meta/v1."))
}

fn set_default(members: &mut Map<String, Value>, field: &str, json: &str) {
    if members.contains_key(field) {
        return;
    }
    // Rows and markers are constants, and a test parses each.
    if let Ok(value) = serde_json::from_str::<Value>(json) {
        members.insert(field.to_owned(), value);
    }
}

/// Rounds the quantities of a resource list up to thousandths.
fn round_to_milli(list: &mut Map<String, Value>) {
    for value in list.values_mut() {
        let Some(quantity) = value.as_str().and_then(|s| Quantity::parse(s).ok()) else { continue };
        if !quantity.is_milli() {
            *value = Value::String(quantity.rounded_to_milli().to_string());
        }
    }
}

#[cfg(test)]
#[path = "defaults_tests.rs"]
mod tests;
