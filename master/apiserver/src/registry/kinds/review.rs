//! Validation of access reviews, which are answered and never stored.

use proto_api::field::{ErrorList, Path};
use serde_json::Value;

use super::super::strategy::Strategy;
use super::check::{Report, qualified_name};
use super::json_fields::{JsonFields, is_zero};

/// Kind of an access review.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AccessReview {
    /// SelfSubjectAccessReview.
    Own,
    /// SubjectAccessReview.
    Any,
    /// LocalSubjectAccessReview.
    Local,
}

fn attributes(spec: &Value, review: AccessReview, errs: &mut ErrorList) {
    let path = Path::new("spec");
    let (resource, other) = (spec.at("resourceAttributes"), spec.at("nonResourceAttributes"));
    match (resource, other) {
        (Some(_), Some(other)) => {
            let detail = "cannot be specified in combination with resourceAttributes";
            errs.invalid(&path.child("nonResourceAttributes"), other.clone(), detail);
        }
        (None, None) => {
            let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errs.invalid(&path.child("resourceAttributes"), Value::Null, detail);
        }
        _ => {}
    }
    if review != AccessReview::Own && spec.text("user").is_empty() && spec.items("groups").is_empty() {
        errs.invalid(&path.child("user"), "", "at least one of user or group must be specified");
    }
    if let Some(resource) = resource {
        let at = Path::new("spec.resourceAttributes");
        for key in ["fieldSelector", "labelSelector"] {
            if let Some(selector) = resource.at(key) {
                self::selector(selector, key == "labelSelector", &at.child(key), errs);
            }
        }
    }
}

fn selector(selector: &Value, labels: bool, path: &Path, errs: &mut ErrorList) {
    let (raw, requirements) = (selector.text("rawSelector"), selector.items("requirements"));
    if !raw.is_empty() && !requirements.is_empty() {
        let detail = "may not specified at the same time as requirements";
        errs.invalid(&path.child("rawSelector"), raw, detail);
    }
    if raw.is_empty() && requirements.is_empty() {
        let detail = format!("when {path} is specified, requirements or rawSelector is required");
        errs.required(&path.child("requirements"), &detail);
    }
    for (i, requirement) in requirements.iter().enumerate() {
        let at = path.child("requirements").index(i);
        let (key, values) = (requirement.text("key"), requirement.items("values"));
        if !labels && key.is_empty() {
            errs.required(&at.child("key"), "must be specified");
        }
        match requirement.text("operator") {
            "In" | "NotIn" if values.is_empty() => {
                errs.required(&at.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errs.forbidden(&at.child("values"), detail);
            }
            _ => {}
        }
        if labels {
            qualified_name(key, &at.child("key"), errs);
        }
    }
}

/// Validates an access review.
pub fn validate(review: &Value, kind: AccessReview, errs: &mut ErrorList) {
    let spec = review.sub("spec");
    attributes(spec, kind, errs);
    let empty = review.entries("metadata").iter().all(|(key, value)| {
        is_zero(value) || key == "managedFields" || (kind == AccessReview::Local && key == "namespace")
    });
    if !empty {
        let detail =
            if kind == AccessReview::Local { "must be empty except for namespace" } else { "must be empty" };
        errs.invalid(&Path::new("metadata"), review.sub("metadata").clone(), detail);
    }
    if kind != AccessReview::Local {
        return;
    }
    let namespace = spec.sub("resourceAttributes").text("namespace");
    if spec.has("resourceAttributes") && namespace != review.sub("metadata").text("namespace") {
        let at = Path::new("spec.resourceAttributes.namespace");
        errs.invalid(&at, namespace, "must match metadata.namespace");
    }
    if let Some(other) = spec.at("nonResourceAttributes") {
        let at = Path::new("spec.nonResourceAttributes");
        errs.invalid(&at, other.clone(), "disallowed on this kind of request");
    }
}

impl Strategy for AccessReview {
    fn validate(&self, obj: &Value, errs: &mut ErrorList) {
        validate(obj, *self, errs);
    }
}
