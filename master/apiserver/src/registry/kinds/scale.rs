//! Validation of the `scale` subresource of all kinds.

use proto_api::field::{ErrorList, Path};
use serde_json::Value;

use super::check::non_negative;
use super::json_fields::JsonFields;

/// Validates an autoscaling/v1 Scale.
pub fn validate(scale: &Value, errs: &mut ErrorList) {
    non_negative(scale.sub("spec").int("replicas"), &Path::new("spec").child("replicas"), errs);
}
