//! Rules that Deployment, ReplicaSet and DaemonSet share: selectors that must match their template, fields
//! that hold a count or a percentage, and status counters.

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use proto_api::selector::{LabelSelector, Selector};
use serde_json::Value;

use super::check::{self, Report, non_negative, non_negative_field};
use super::json_fields::JsonFields;
use super::pod;
use super::string_rules;
use super::template;

/// Returns the selector of a spec; an absent one matches nothing, an empty one everything.
///
/// # Errors
///
/// When an operator, key or value of the selector is invalid.
pub fn selector(spec: &Value) -> Result<Selector, String> {
    Selector::from_label_selector(spec.at("selector"))
}

/// Returns whether a selector has no conditions.
pub fn is_empty(selector: &Value) -> bool {
    LabelSelector::from_value(selector).map_or(true, |s| s.is_empty())
}

/// Validates `selector` and `template` of a Deployment or a ReplicaSet.
pub fn selector_and_template(spec: &Value, path: &Path, errs: &mut ErrorList) {
    let at = path.child("selector");
    match spec.at("selector") {
        None => errs.required(&at, ""),
        Some(selector) => {
            check::label_selector(selector, &at, errs);
            if is_empty(selector) {
                errs.invalid(&at, selector.clone(), "empty selector is invalid for deployment");
            }
        }
    }
    let template_path = path.child("template");
    let template = spec.sub("template");
    match selector(spec) {
        Err(_) => errs.invalid(&at, spec.sub("selector").clone(), "invalid label selector"),
        Ok(selector) => {
            // As in upstream (`labels.Nothing`), an absent selector matches nothing and does not count as
            // empty.
            if !selector.is_empty() || !spec.has("selector") {
                matches_template(&selector, template, &template_path, errs);
            }
            template::validate(template, &template_path, errs);
            template::keeps_running(template, "ReplicaSet", &template_path, errs);
        }
    }
}

/// Checks that the selector matches the labels of the template.
pub fn matches_template(selector: &Selector, template: &Value, path: &Path, errs: &mut ErrorList) {
    let labels = template.sub("metadata").sub("labels");
    if !selector.matches(labels) {
        let at = path.child("metadata").child("labels");
        errs.invalid(&at, labels.clone(), "`selector` does not match template `labels`");
    }
}

/// Checks that the selector did not change.
pub fn selector_immutable(new: &Value, old: &Value, errs: &mut ErrorList) {
    let at = Path::new("spec").child("selector");
    check::immutable(new.sub("spec").sub("selector"), old.sub("spec").sub("selector"), &at, errs);
}

/// Checks that the value is a count of at least 0 or a percentage.
pub fn count_or_percent(value: &Value, path: &Path, errs: &mut ErrorList) {
    match value.as_str() {
        Some(percent) => {
            for message in names::percent(percent) {
                errs.invalid(path, percent, &message);
            }
        }
        None => non_negative(value.as_i64().unwrap_or_default(), path, errs),
    }
}

/// Checks that a percentage is not above 100; accepts any count.
pub fn at_most_all(value: &Value, path: &Path, errs: &mut ErrorList) {
    if let Some(percent) = value.as_str().filter(|p| string_rules::percent_value(p).is_some_and(|n| n > 100))
    {
        errs.invalid(path, percent, "must not be greater than 100%");
    }
}

/// Returns whether a count or percentage is 0; text that is neither counts as 0.
pub fn is_none(value: &Value) -> bool {
    match value.as_str() {
        Some(text) => {
            string_rules::percent_value(text).or_else(|| text.parse().ok()).unwrap_or_default() == 0
        }
        None => value.as_i64().unwrap_or_default() == 0,
    }
}

/// Checks that the named counters of a status are at least 0.
pub fn counters(status: &Value, keys: &[&str], errs: &mut ErrorList) {
    for key in keys {
        non_negative_field(status, key, &Path::new("status"), errs);
    }
}

/// Checks that the counter `low` is not above the counter `high`.
pub fn bounded(status: &Value, low: &str, high: &str, errs: &mut ErrorList) {
    if status.int(low) > status.int(high) {
        let shown = if high == "replicas" { "status.replicas" } else { high };
        let detail = format!("cannot be greater than {shown}");
        errs.invalid(&Path::new("status").child(low), status.int(low), &detail);
    }
}

/// Checks that the collision count does not decrease.
pub fn collisions(new: &Value, old: &Value, errs: &mut ErrorList) {
    let key = "collisionCount";
    let (now, before) = (new.sub("status").opt_int(key), old.sub("status").opt_int(key));
    if before.is_some_and(|b| now.is_none_or(|n| n < b)) {
        let at = Path::new("status").child(key);
        errs.invalid(&at, now.unwrap_or_default(), "cannot be decremented");
    }
}

/// Removes the fields of features that are off from `spec.template`.
pub fn drop_disabled(obj: &mut Value) {
    let template = obj.get_mut("spec").and_then(|s| s.get_mut("template"));
    if let Some(spec) = template.and_then(|t| t.get_mut("spec")) {
        pod::drop_disabled_spec(spec);
    }
}
