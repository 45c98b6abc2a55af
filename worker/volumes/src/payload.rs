//! Converts the keys of a ConfigMap or Secret, with `items` and modes, to the files of a volume.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, KeyToPath, Secret};

use crate::Error;
use crate::atomic_writer::{FileProjection, Payload};

/// Values as bytes, by key.
pub type Data = BTreeMap<String, Vec<u8>>;

/// Returns all keys of a ConfigMap, from `data` and `binaryData`.
pub fn config_map_data(object: &ConfigMap) -> Data {
    let text = object.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = object.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    text.chain(binary).collect()
}

/// Returns all keys of a Secret.
pub fn secret_data(object: &Secret) -> Data {
    object.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

/// Returns the files for `items`, or for all keys if there are no items. `kind` is `config` or `secret`, for
/// the error text.
pub fn project(
    kind: &'static str,
    data: &Data,
    items: Option<&[KeyToPath]>,
    default_mode: u32,
    optional: bool,
) -> Result<Payload, Error> {
    let file = |bytes: &[u8], mode: u32| FileProjection { data: bytes.to_vec(), mode, owner: None };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(data.iter().map(|(key, bytes)| (key.clone(), file(bytes, default_mode))).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => {
                let mode = item.mode.map_or(default_mode, mode_bits);
                payload.insert(item.path.clone(), file(bytes, mode));
            }
            None if optional => {}
            None => return Err(Error::KeyNotFound { kind, key: item.key.clone() }),
        }
    }
    Ok(payload)
}

/// Converts a mode from the API to permission bits; 0644 if it is negative.
pub fn mode_bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0o644) & 0o777
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_choose_keys_and_modes_and_missing_keys_fail_unless_optional() {
        let data = Data::from([("k".to_owned(), b"v".to_vec())]);
        let item = |key: &str| KeyToPath { key: key.to_owned(), path: "p/q".to_owned(), mode: Some(0o400) };
        let payload = project("config", &data, Some(&[item("k")]), 0o644, false).unwrap();
        assert_eq!(payload["p/q"].mode, 0o400);
        let error = project("config", &data, Some(&[item("x")]), 0o644, false).unwrap_err();
        assert_eq!(error.to_string(), "references non-existent config key: x");
        assert!(project("config", &data, Some(&[item("x")]), 0o644, true).unwrap().is_empty());
        assert_eq!(project("config", &data, None, 0o644, false).unwrap()["k"].mode, 0o644);
    }
}
