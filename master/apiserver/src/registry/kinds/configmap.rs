//! The strategy of ConfigMaps, and the rule of immutable objects that Secrets share (KEP-1412).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::super::strategy::Strategy;
use super::check::Report;
use super::json_fields::{JsonFields, same};

/// Maximum number of bytes of all values of a ConfigMap or a Secret together.
pub const MAX_BYTES: usize = 1024 * 1024;

/// The strategy of ConfigMaps.
#[derive(Debug)]
pub struct ConfigMapStrategy;

/// Decodes a base64 value; the schema check has already refused values that do not decode.
pub fn bytes(value: &Value) -> Vec<u8> {
    value.as_str().and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default()
}

/// Checks that an object stored with `immutable: true` keeps that flag and the named maps.
pub fn frozen(new: &Value, old: &Value, maps: &[&str], errs: &mut ErrorList) {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if !old.flag("immutable") {
        return;
    }
    if !new.flag("immutable") {
        errs.forbidden(&Path::new("immutable"), DETAIL);
    }
    for key in maps.iter().filter(|k| !same(new.sub(k), old.sub(k))) {
        errs.forbidden(&Path::new(*key), DETAIL);
    }
}

impl Strategy for ConfigMapStrategy {
    fn validate(&self, obj: &Value, errs: &mut ErrorList) {
        let (data, binary) = (obj.entries("data"), obj.entries("binaryData"));
        let mut size = 0;
        let path = Path::new("data");
        for (key, value) in data.texts() {
            errs.each(&path.key(key), key, names::config_map_key(key));
            if binary.get(key).is_some() {
                errs.invalid(&path.key(key), key, "duplicate of key present in binaryData");
            }
            size += value.len();
        }
        let path = Path::new("binaryData");
        for (key, value) in binary.iter() {
            errs.each(&path.key(key), key, names::config_map_key(key));
            size += bytes(value).len();
        }
        if size > MAX_BYTES {
            errs.too_long(&Path::root(), MAX_BYTES);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        frozen(new, old, &["data", "binaryData"], errs);
        self.validate(new, errs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(errs: &ErrorList) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_key_is_in_one_of_the_two_maps() {
        let mut errs = ErrorList::default();
        let obj = json!({"data": {"a": "1", "a/b": ""}, "binaryData": {"a": "AAE="}});
        ConfigMapStrategy.validate(&obj, &mut errs);
        assert_eq!(errs.len(), 2);
        assert_eq!(found(&errs)[0], "data[a]: Invalid value: \"a\": duplicate of key present in binaryData");
    }

    #[test]
    fn more_than_a_mebibyte_is_too_long() {
        let mut errs = ErrorList::default();
        let obj = json!({"data": {"a": "x".repeat(MAX_BYTES + 1)}});
        ConfigMapStrategy.validate(&obj, &mut errs);
        assert_eq!(found(&errs), [": Too long: may not be more than 1048576 bytes"]);
    }

    #[test]
    fn an_immutable_one_stays_as_it_is() {
        let mut errs = ErrorList::default();
        let old = json!({"immutable": true, "data": {"a": "1"}});
        ConfigMapStrategy.validate_update(&json!({"data": {"a": "2"}}), &old, &mut errs);
        assert_eq!(errs.len(), 2);
    }
}
