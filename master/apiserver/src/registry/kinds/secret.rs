//! The strategy of Secrets: the keys each type needs, `stringData`, immutability.

use std::collections::BTreeMap;

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::{Map, Value};

use super::super::strategy::{Strategy, metadata_fields};
use super::check::{IMMUTABLE, Report};
use super::configmap::{MAX_BYTES, bytes, frozen};
use super::json_fields::{self, JsonFields};

/// The strategy of Secrets.
#[derive(Debug)]
pub struct SecretStrategy;

const ACCOUNT: &str = "kubernetes.io/service-account.name";

fn typed(obj: &Value, path: &Path, errs: &mut ErrorList) {
    let data = obj.entries("data");
    let needs = |key: &str, errs: &mut ErrorList| {
        if data.get(key).is_none() {
            errs.required(&path.key(key), "");
        }
    };
    match obj.text("type") {
        "kubernetes.io/service-account-token"
            if json_fields::annotations(obj).text(ACCOUNT).unwrap_or_default().is_empty() =>
        {
            errs.required(&Path::new("metadata").child("annotations").key(ACCOUNT), "");
        }
        "kubernetes.io/dockercfg" => docker(obj, ".dockercfg", path, errs),
        "kubernetes.io/dockerconfigjson" => docker(obj, ".dockerconfigjson", path, errs),
        "kubernetes.io/basic-auth" if data.get("username").is_none() && data.get("password").is_none() => {
            needs("username", errs);
            needs("password", errs);
        }
        "kubernetes.io/ssh-auth" if data.text("ssh-privatekey").unwrap_or_default().is_empty() => {
            errs.required(&path.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            needs("tls.crt", errs);
            needs("tls.key", errs);
        }
        _ => {}
    }
}

fn docker(obj: &Value, key: &str, path: &Path, errs: &mut ErrorList) {
    match obj.entries("data").get(key) {
        None => errs.required(&path.key(key), ""),
        Some(value) => {
            if let Err(error) = serde_json::from_slice::<Map<String, Value>>(&bytes(value)) {
                let detail = if bytes(value).is_empty() {
                    "unexpected end of JSON input".to_owned()
                } else {
                    error.to_string()
                };
                errs.invalid(&path.key(key), "<secret contents redacted>", &detail);
            }
        }
    }
}

impl Strategy for SecretStrategy {
    fn validate(&self, obj: &Value, errs: &mut ErrorList) {
        let path = Path::new("data");
        let mut size = 0;
        for (key, value) in obj.entries("data").iter() {
            errs.each(&path.key(key), key, names::config_map_key(key));
            size += bytes(value).len();
        }
        if size > MAX_BYTES {
            errs.too_long(&path, MAX_BYTES);
        }
        typed(obj, &path, errs);
    }

    fn validate_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        if new.text("type") != old.text("type") {
            errs.invalid(&Path::new("type"), new.text("type"), IMMUTABLE);
        }
        frozen(new, old, &["data"], errs);
        self.validate(new, errs);
    }

    fn selectable_fields(&self, obj: &Value) -> BTreeMap<String, String> {
        let mut out = metadata_fields(obj);
        out.insert("type".to_owned(), obj.text("type").to_owned());
        out
    }

    fn supported_field_labels(&self) -> &'static [&'static str] {
        &["metadata.name", "metadata.namespace", "type"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_type_needs_its_keys() {
        let mut errs = ErrorList::default();
        SecretStrategy.validate(&json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}), &mut errs);
        let texts: Vec<String> = errs.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["data[tls.key]: Required value"]);
    }
}
