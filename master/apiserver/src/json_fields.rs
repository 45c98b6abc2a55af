//! Reads API objects as JSON values by Go's zero-value rules: an absent field, a null and the empty value of
//! a type are the same unless the caller asks for an `Option`. Strategies and admission plugins use it.

use serde_json::{Map, Value};

/// Null value, returned for an absent object or list item.
pub const NULL: &Value = &Value::Null;

/// Accessors with Go's zero values; a value of the wrong type reads as absent (the schema check ran before).
pub trait JsonFields {
    /// Returns the field; `None` where it is absent or null.
    fn at(&self, key: &str) -> Option<&Value>;
    /// Returns the field as an object to read further fields from; null where absent.
    fn sub(&self, key: &str) -> &Value;
    /// Returns whether a field is present and not null: a non-nil pointer in Go.
    fn has(&self, key: &str) -> bool;
    /// Returns a string field; empty where absent.
    fn text(&self, key: &str) -> &str;
    /// Returns a string field, a pointer in Go; `None` where absent.
    fn opt_text(&self, key: &str) -> Option<&str>;
    /// Returns a number field; 0 where absent.
    fn int(&self, key: &str) -> i64;
    /// Returns a number field, a pointer in Go; `None` where absent.
    fn opt_int(&self, key: &str) -> Option<i64>;
    /// Returns a bool field; false where absent.
    fn flag(&self, key: &str) -> bool;
    /// Returns a bool field, a pointer in Go; `None` where absent.
    fn opt_flag(&self, key: &str) -> Option<bool>;
    /// Returns the items of a list field; empty where absent.
    fn items(&self, key: &str) -> &[Value];
    /// Returns a map field; empty where absent.
    fn entries(&self, key: &str) -> Entries<'_>;
    /// Returns the strings of a list field.
    fn texts(&self, key: &str) -> Vec<&str>;
}

impl JsonFields for Value {
    fn at(&self, key: &str) -> Option<&Value> {
        self.get(key).filter(|v| !v.is_null())
    }

    fn sub(&self, key: &str) -> &Value {
        self.get(key).unwrap_or(NULL)
    }

    fn has(&self, key: &str) -> bool {
        self.at(key).is_some()
    }

    fn text(&self, key: &str) -> &str {
        self.opt_text(key).unwrap_or_default()
    }

    fn opt_text(&self, key: &str) -> Option<&str> {
        self.at(key).and_then(Value::as_str)
    }

    fn int(&self, key: &str) -> i64 {
        self.opt_int(key).unwrap_or_default()
    }

    fn opt_int(&self, key: &str) -> Option<i64> {
        self.at(key).and_then(Value::as_i64)
    }

    fn flag(&self, key: &str) -> bool {
        self.opt_flag(key).unwrap_or_default()
    }

    fn opt_flag(&self, key: &str) -> Option<bool> {
        self.at(key).and_then(Value::as_bool)
    }

    fn items(&self, key: &str) -> &[Value] {
        self.at(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn entries(&self, key: &str) -> Entries<'_> {
        Entries(self.at(key).and_then(Value::as_object))
    }

    fn texts(&self, key: &str) -> Vec<&str> {
        self.items(key).iter().map(|v| v.as_str().unwrap_or_default()).collect()
    }
}

/// A map field; `None` where the field is absent.
#[derive(Clone, Copy, Debug)]
pub struct Entries<'a>(Option<&'a Map<String, Value>>);

impl<'a> Entries<'a> {
    /// Number of entries.
    pub fn len(self) -> usize {
        self.0.map_or(0, Map::len)
    }

    /// Returns whether the map has no entries.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Returns the value of a key; null counts as present, as in a Go map.
    pub fn get(self, key: &str) -> Option<&'a Value> {
        self.0.and_then(|m| m.get(key))
    }

    /// Returns the string value of a key; `None` where the key is absent, empty where the value is no string.
    pub fn text(self, key: &str) -> Option<&'a str> {
        self.get(key).map(|v| v.as_str().unwrap_or_default())
    }

    /// Iterates over keys and values in key order.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.0.into_iter().flatten().map(|(k, v)| (k.as_str(), v))
    }

    /// Iterates over keys and string values in key order; any other value is given as an empty string.
    pub fn texts(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.iter().map(|(k, v)| (k, v.as_str().unwrap_or_default()))
    }
}

/// Returns `metadata.annotations`.
pub fn annotations(obj: &Value) -> Entries<'_> {
    obj.sub("metadata").entries("annotations")
}

/// Returns `metadata.labels`.
pub fn labels(obj: &Value) -> Entries<'_> {
    obj.sub("metadata").entries("labels")
}

/// Returns `metadata.name`; empty where absent.
pub fn name(obj: &Value) -> &str {
    obj.sub("metadata").text("name")
}

/// Returns `metadata.namespace`; empty where absent.
pub fn namespace(obj: &Value) -> &str {
    obj.sub("metadata").text("namespace")
}

/// Sets a field of an object; does nothing where `obj` is not an object.
pub fn set(obj: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = obj.as_object_mut() {
        map.insert(key.to_owned(), value.into());
    }
}

/// Sets a field only where it is absent, null or the zero value of its type.
pub fn set_default(obj: &mut Value, key: &str, value: impl Into<Value>) {
    if is_zero(obj.sub(key)) {
        set(obj, key, value);
    }
}

/// Sets a field only where it is absent or null: the default of a pointer field.
pub fn set_absent(obj: &mut Value, key: &str, value: impl Into<Value>) {
    if !obj.has(key) {
        set(obj, key, value);
    }
}

/// Removes a field.
pub fn unset(obj: &mut Value, key: &str) {
    if let Some(map) = obj.as_object_mut() {
        map.remove(key);
    }
}

/// Copies the field of `old` into `new`, or removes it from `new` where `old` has none.
pub fn keep(new: &mut Value, old: &Value, key: &str) {
    match old.at(key) {
        Some(value) => set(new, key, value.clone()),
        None => unset(new, key),
    }
}

/// Returns the field as a mutable object, created where absent; `None` where `obj` is no object.
pub fn ensure<'a>(obj: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let map = obj.as_object_mut()?;
    let value = map.entry(key.to_owned()).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    Some(value)
}

/// Iterates over the items of a list, mutable; none when absent.
pub fn items_mut<'a>(obj: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    obj.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().map(|item| {
        if item.is_null() {
            *item = Value::Object(Map::new());
        }
        item
    })
}

/// Returns whether a value is Go's zero value or an empty container.
pub fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

/// Returns whether two values are semantically equal: absent, null and empty containers are alike at every
/// depth. Quantities and times are canonical strings by now, so comparing their text is enough.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(k, v)| same(v, y.get(k).unwrap_or(NULL)))
                && y.iter().all(|(k, v)| x.contains_key(k) || same(NULL, v))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(v, w)| same(v, w)),
        (Value::Null, other) | (other, Value::Null) => is_empty(other),
        _ => a == b,
    }
}

/// Returns whether a value is null or an empty list or map, which `same` treats as absent.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn absent_null_and_empty_containers_are_the_same() {
        assert!(same(&json!({"a": []}), &json!({})));
        assert!(same(&json!({}), &json!({"a": null, "b": {}})));
        assert!(!same(&json!({"a": 0}), &json!({})));
        assert!(!same(&json!({"a": [1]}), &json!({"a": [1, 2]})));
    }

    #[test]
    fn a_wrong_type_reads_as_absent() {
        let v = json!({"a": "x", "b": 3, "c": null});
        assert_eq!((v.int("a"), v.text("b"), v.has("c")), (0, "", false));
    }
}
