//! Checks that many kinds share; each adds field errors with the texts of stock Kubernetes. Strategies call
//! them; the string rules themselves are in `string_rules.rs` and `proto_api::names`.

use std::net::IpAddr;

use proto_api::field::{Error, ErrorList, Path};
use proto_api::names;
use serde_json::{Value, json};

use super::ip;
use super::json_fields::{Entries, JsonFields};

/// Error text for a number that must not be negative.
pub const NEGATIVE: &str = "must be greater than or equal to 0";
/// Error text for a number that must be above zero.
pub const NOT_POSITIVE: &str = "must be greater than zero";
/// Error text for a field that may not change.
pub const IMMUTABLE: &str = "field is immutable";
/// Error text for a file mode out of range.
pub const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
/// Protocols that a port may have.
pub const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// Returns a value as error messages print it: without empty members, as Kubernetes' types leave them out.
fn shown(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let full = map.into_iter().map(|(k, v)| (k, shown(v))).filter(|(_, v)| match v {
                Value::Null => false,
                Value::Object(map) => !map.is_empty(),
                Value::Array(list) => !list.is_empty(),
                _ => true,
            });
            Value::Object(full.collect())
        }
        other => other,
    }
}

/// Short forms for adding field errors.
pub trait Report {
    /// Reports a required field that is missing.
    fn required(&mut self, path: &Path, detail: &str);
    /// Reports a value that breaks a rule.
    fn invalid(&mut self, path: &Path, value: impl Into<Value>, detail: &str);
    /// Reports a field that may not be set.
    fn forbidden(&mut self, path: &Path, detail: &str);
    /// Reports a value that is not one of those supported.
    fn unsupported(&mut self, path: &Path, value: impl Into<Value>, supported: &[&str]);
    /// Reports a value that occurs twice.
    fn duplicate(&mut self, path: &Path, value: impl Into<Value>);
    /// Reports a reference to an object that does not exist.
    fn not_found(&mut self, path: &Path, value: impl Into<Value>);
    /// Reports a value with more than `max` bytes.
    fn too_long(&mut self, path: &Path, max: usize);
    /// Reports a list with more than `max` items.
    fn too_many(&mut self, path: &Path, actual: usize, max: usize);
    /// Reports an `invalid` error for each of `details`.
    fn each(&mut self, path: &Path, value: &str, details: Vec<String>);
}

impl Report for ErrorList {
    fn required(&mut self, path: &Path, detail: &str) {
        self.push(Error::required(path, detail));
    }

    fn invalid(&mut self, path: &Path, value: impl Into<Value>, detail: &str) {
        self.push(Error::invalid(path, shown(value.into()), detail));
    }

    fn forbidden(&mut self, path: &Path, detail: &str) {
        self.push(Error::forbidden(path, detail));
    }

    fn unsupported(&mut self, path: &Path, value: impl Into<Value>, supported: &[&str]) {
        self.push(Error::not_supported(path, value.into(), supported));
    }

    fn duplicate(&mut self, path: &Path, value: impl Into<Value>) {
        self.push(Error::duplicate(path, value.into()));
    }

    fn not_found(&mut self, path: &Path, value: impl Into<Value>) {
        self.push(Error::not_found(path, value.into()));
    }

    fn too_long(&mut self, path: &Path, max: usize) {
        self.push(Error::too_long(path, max));
    }

    fn too_many(&mut self, path: &Path, actual: usize, max: usize) {
        self.push(Error::too_many(path, actual, max));
    }

    fn each(&mut self, path: &Path, value: &str, details: Vec<String>) {
        for detail in details {
            self.invalid(path, value, &detail);
        }
    }
}

/// Checks that a value is an RFC 1123 label.
pub fn dns_label(value: &str, path: &Path, errs: &mut ErrorList) {
    errs.each(path, value, names::dns1123_label(value));
}

/// Checks that a value is an RFC 1123 subdomain.
pub fn dns_subdomain(value: &str, path: &Path, errs: &mut ErrorList) {
    errs.each(path, value, names::dns1123_subdomain(value));
}

/// Checks that a value is a name with an optional DNS prefix, as label keys are.
pub fn qualified_name(value: &str, path: &Path, errs: &mut ErrorList) {
    errs.each(path, value, names::qualified_name(value));
}

/// Validates a map of labels; errors are reported for the whole map, as in upstream.
pub fn label_map(labels: Entries<'_>, path: &Path, errs: &mut ErrorList) {
    for (key, value) in labels.texts() {
        qualified_name(key, path, errs);
        errs.each(path, value, names::label_value(value));
    }
}

/// Validates annotations: qualified keys (case-insensitive) and at most 256 KiB in all.
pub fn annotation_map(annotations: Entries<'_>, path: &Path, errs: &mut ErrorList) {
    const LIMIT: usize = 256 * 1024;
    let mut size = 0;
    for (key, value) in annotations.texts() {
        errs.each(path, key, names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.len();
    }
    if size > LIMIT {
        errs.too_long(path, LIMIT);
    }
}

/// Checks that a number is at least 0.
pub fn non_negative(value: i64, path: &Path, errs: &mut ErrorList) {
    if value < 0 {
        errs.invalid(path, value, NEGATIVE);
    }
}

/// Checks that a number field of `obj` is at least 0.
pub fn non_negative_field(obj: &Value, key: &str, path: &Path, errs: &mut ErrorList) {
    if obj.int(key) < 0 {
        errs.invalid(&path.child(key), obj.int(key), NEGATIVE);
    }
}

/// Checks that a number is above 0.
pub fn positive(value: i64, path: &Path, errs: &mut ErrorList) {
    if value <= 0 {
        errs.invalid(path, value, NOT_POSITIVE);
    }
}

/// Checks that a number is within the bounds, both inclusive.
pub fn in_range(value: i64, low: i64, high: i64, path: &Path, errs: &mut ErrorList) {
    if !(low..=high).contains(&value) {
        errs.invalid(path, value, &names::inclusive_range_message(low, high));
    }
}

/// Checks that a number is a port, 1 to 65535.
pub fn port_number(value: i64, path: &Path, errs: &mut ErrorList) {
    in_range(value, 1, 65535, path, errs);
}

/// Checks that a value is a port number or an IANA service name; an absent value counts as port 0.
pub fn port_or_name(value: &Value, path: &Path, errs: &mut ErrorList) {
    match value.as_str() {
        Some(name) => errs.each(path, name, names::port_name(name)),
        None => port_number(value.as_i64().unwrap_or_default(), path, errs),
    }
}

/// Checks that a number is a valid user or group id.
pub fn id_number(value: i64, path: &Path, errs: &mut ErrorList) {
    in_range(value, 0, i64::from(i32::MAX), path, errs);
}

/// Checks that a value is set and one of those supported.
pub fn one_of(value: &str, supported: &[&str], path: &Path, errs: &mut ErrorList) {
    if value.is_empty() {
        errs.required(path, "");
    } else if !supported.contains(&value) {
        errs.unsupported(path, value, supported);
    }
}

/// Checks that an optional value is one of those supported where it is set, even to an empty string.
pub fn opt_one_of(obj: &Value, key: &str, supported: &[&str], path: &Path, errs: &mut ErrorList) {
    if let Some(value) = obj.opt_text(key).filter(|v| !supported.contains(v)) {
        errs.unsupported(&path.child(key), value, supported);
    }
}

/// Checks that a string field is not empty.
pub fn required_text(obj: &Value, key: &str, path: &Path, errs: &mut ErrorList) {
    if obj.text(key).is_empty() {
        errs.required(&path.child(key), "");
    }
}

/// Checks that a field did not change.
pub fn immutable(new: &Value, old: &Value, path: &Path, errs: &mut ErrorList) {
    if !super::json_fields::same(new, old) {
        errs.invalid(path, new.clone(), IMMUTABLE);
    }
}

/// Validates an address in a field that accepts leading zeros; values in `known`, stored before, are accepted
/// as they are.
pub fn legacy_ip(value: &str, path: &Path, known: &[&str], errs: &mut ErrorList) {
    if !known.contains(&value) && ip::parse(value).is_none() {
        errs.invalid(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

/// Validates a network in a field that accepts leading zeros and host bits; values in `known`, stored before,
/// are accepted as they are.
pub fn legacy_cidr(value: &str, path: &Path, known: &[&str], errs: &mut ErrorList) {
    if !known.contains(&value) && ip::parse_cidr(value).is_none() {
        errs.invalid(path, value, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
    }
}

/// Checks that an address may be an endpoint of a Service: not unspecified, loopback or link-local.
pub fn endpoint_ip(value: &str, path: &Path, errs: &mut ErrorList) {
    let Some(addr) = ip::parse(value) else {
        errs.invalid(path, value, "must be a valid IP address");
        return;
    };
    if addr.is_unspecified() {
        errs.invalid(path, value, &format!("may not be unspecified ({value})"));
    }
    if addr.is_loopback() {
        errs.invalid(path, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (unicast, multicast) = match addr {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] == 0xff02),
    };
    if unicast {
        errs.invalid(path, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if multicast {
        errs.invalid(path, value, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// Validates the syntax of a LabelSelector; an absent one is accepted.
pub fn label_selector(selector: &Value, path: &Path, errs: &mut ErrorList) {
    label_map(selector.entries("matchLabels"), &path.child("matchLabels"), errs);
    let list = path.child("matchExpressions");
    for (i, expr) in selector.items("matchExpressions").iter().enumerate() {
        let at = list.index(i);
        let values = expr.texts("values");
        match expr.text("operator") {
            "In" | "NotIn" if values.is_empty() => {
                errs.required(&at.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => errs.forbidden(
                &at.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errs.invalid(&at.child("operator"), other, "not a valid selector operator"),
        }
        qualified_name(expr.text("key"), &at.child("key"), errs);
        for (j, value) in values.iter().enumerate() {
            errs.each(&at.child("values").index(j), value, names::label_value(value));
        }
    }
}

/// Returns a list of texts as one value, for errors that quote the whole list.
pub fn text_list(values: &[&str]) -> Value {
    json!(values)
}
