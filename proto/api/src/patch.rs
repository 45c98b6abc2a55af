//! Patches on JSON values: merge patch (RFC 7396), and strategic merge patch with Kubernetes' directives
//! and the merge keys and strategies of the schema table. The `json-patch` crate does JSON patch (RFC
//! 6902).

mod order;
mod strategic;

use serde_json::{Map, Value};

pub use strategic::{Error, strategic_merge};

/// Applies a merge patch: null removes a member, objects are merged, any other value replaces.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(object) = target.as_object_mut() else { return };
    for (key, value) in members {
        if value.is_null() {
            object.remove(key);
        } else {
            merge(object.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::merge;
    use serde_json::json;

    #[test]
    fn a_merge_patch_removes_merges_and_replaces() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
        merge(&mut target, &json!({"a": {"b": null, "d": {"e": null, "f": 1}}, "l": [3]}));
        assert_eq!(target, json!({"a": {"c": 2, "d": {"f": 1}}, "l": [3]}));
    }
}
