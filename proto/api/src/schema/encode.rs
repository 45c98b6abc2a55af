//! Encoding: the form in which stock Kubernetes stores and sends an object, which is that of its Go types
//! after a protobuf round trip. Empty lists and maps are dropped (or become null if the field is always
//! written), structs that are always written appear as `{}`, zero values as zero.

use serde_json::{Map, Value};

use super::{Schema, Table, Type};

/// Brings an object of a kind into the form in which it is stored and sent. Unknown members are left
/// unchanged.
pub fn encode(schema: Schema, value: &mut Value) {
    encode_type(&Type::Struct(schema.id()), value);
}

/// Brings a value of any type of the table into the form in which it is stored and sent.
pub fn encode_type(of: &Type, value: &mut Value) {
    match (of, value) {
        (Type::Pointer(inner) | Type::Named { of: inner, .. }, value) => encode_type(inner, value),
        (Type::List(inner), Value::Array(items)) => {
            items.iter_mut().for_each(|item| encode_type(inner, item))
        }
        (Type::Map(inner), Value::Object(members)) => {
            members.values_mut().for_each(|item| encode_type(inner, item));
        }
        (Type::Struct(id), Value::Object(members)) => {
            for field in &Table::get().at(*id).fields {
                let present = members.get_mut(field.name).filter(|v| !v.is_null());
                if let Some(value) = present {
                    encode_type(&field.of, value);
                    if !is_empty(&field.of, value) {
                        continue;
                    }
                    let dropped = if is_struct(&field.of) { field.omit_zero } else { field.omit_empty };
                    if !dropped {
                        if matches!(super::bare(&field.of), Type::List(_) | Type::Map(_)) {
                            *value = Value::Null;
                        }
                        continue;
                    }
                    members.remove(field.name);
                } else if let Some(value) = absent(&field.of, field.omit_empty, field.omit_zero) {
                    members.insert(field.name.to_owned(), value);
                } else {
                    members.remove(field.name);
                }
            }
        }
        _ => {}
    }
}

/// Returns the value written for an absent field; `None` leaves the field out.
fn absent(of: &Type, omit_empty: bool, omit_zero: bool) -> Option<Value> {
    if omit_zero || (omit_empty && !is_struct(of)) {
        return None;
    }
    match of {
        Type::Named { of: inner, .. } => absent(inner, omit_empty, omit_zero),
        Type::Pointer(_) | Type::List(_) | Type::Map(_) | Type::Bytes => Some(Value::Null),
        other => {
            let mut value = zero(other);
            encode_type(other, &mut value);
            Some(value)
        }
    }
}

/// Returns whether a type is a Go struct, which is never empty for `omitempty`; so are times, quantities
/// and int-or-strings.
fn is_struct(of: &Type) -> bool {
    match of {
        Type::Named { of: inner, .. } => is_struct(inner),
        Type::Struct(_)
        | Type::Time
        | Type::MicroTime
        | Type::Duration
        | Type::Quantity
        | Type::IntOrString => true,
        Type::Any => true,
        _ => false,
    }
}

/// Returns whether a present value is the zero value of a type; a value behind a pointer never is.
fn is_empty(of: &Type, value: &Value) -> bool {
    match of {
        Type::Named { of: inner, .. } => is_empty(inner, value),
        Type::Pointer(_) | Type::Quantity | Type::IntOrString | Type::Any | Type::Duration => false,
        Type::List(_) => value.as_array().is_some_and(Vec::is_empty),
        Type::Map(_) | Type::Struct(_) => value.as_object().is_some_and(Map::is_empty),
        Type::String | Type::Bytes | Type::Time | Type::MicroTime => {
            value.as_str().is_some_and(str::is_empty)
        }
        Type::Bool => value == &Value::Bool(false),
        Type::Int { .. } | Type::Float(_) => value.as_f64() == Some(0.0),
    }
}

/// Returns the zero value of a type as JSON: `""`, `0`, `{}`, `null`.
pub fn zero(of: &Type) -> Value {
    match of {
        Type::Named { of: inner, .. } => zero(inner),
        Type::String => Value::String(String::new()),
        Type::Bool => Value::Bool(false),
        Type::Int { .. } | Type::Float(_) | Type::IntOrString => Value::from(0),
        Type::Struct(_) => Value::Object(Map::new()),
        Type::Quantity => Value::String("0".into()),
        Type::Duration => Value::String("0s".into()),
        Type::Pointer(_)
        | Type::List(_)
        | Type::Map(_)
        | Type::Time
        | Type::MicroTime
        | Type::Any
        | Type::Bytes => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn encoded(group: &str, kind: &str, mut value: Value) -> Value {
        encode(Schema::of(group, "v1", kind).expect("in the table"), &mut value);
        value
    }

    #[test]
    fn structs_without_pointer_are_always_written() {
        let pod = json!({"kind": "Pod", "spec": {"containers": [{"name": "c"}]}});
        assert_eq!(
            encoded("", "Pod", pod),
            json!({"kind": "Pod", "metadata": {}, "status": {},
                "spec": {"containers": [{"name": "c", "resources": {}}]}})
        );
    }

    #[test]
    fn empty_lists_and_maps_go_or_become_null() {
        let slice = json!({"addressType": "IPv4", "endpoints": [], "ports": [], "metadata": {"labels": {}}});
        assert_eq!(
            encoded("discovery.k8s.io", "EndpointSlice", slice),
            json!({"addressType": "IPv4", "endpoints": null, "ports": null, "metadata": {}})
        );
    }

    #[test]
    fn an_absent_time_is_null_unless_it_is_omitted_when_zero() {
        let event = encoded("", "Event", json!({"metadata": {"name": "x"}, "reason": "R"}));
        assert_eq!(event["firstTimestamp"], Value::Null);
        assert!(event.get("firstTimestamp").is_some());
        assert!(event["metadata"].get("creationTimestamp").is_none());
    }

    #[test]
    fn encoding_twice_changes_nothing() {
        let object =
            json!({"spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {}}});
        let once = encoded("apps", "Deployment", object);
        assert_eq!(encoded("apps", "Deployment", once.clone()), once);
        assert_eq!(once["spec"]["replicas"], json!(0));
    }
}
