//! Tests of the JSON form and the messages of Status.

use super::*;
use crate::field::{Error, Path};
use serde_json::json;

#[test]
fn not_found_has_the_stock_shape() {
    assert_eq!(
        Status::not_found("apps", "deployments", "x").to_value(),
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
            "message": "deployments.apps \"x\" not found", "reason": "NotFound",
            "details": {"name": "x", "group": "apps", "kind": "deployments"}})
    );
}

#[test]
fn invalid_lists_a_cause_for_each_error() {
    let path = Path::new("spec").child("replicas");
    let mut errors = ErrorList::new();
    errors.push(Error::invalid(&path, -1, "must be greater than or equal to 0"));
    let one = Status::invalid("apps", "Deployment", "x", errors.clone());
    assert_eq!(
        one.message,
        "Deployment.apps \"x\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
    );
    errors.push(Error::required(&Path::new("spec").child("selector"), ""));
    let two = Status::invalid("apps", "Deployment", "x", errors);
    assert!(two.message.ends_with("or equal to 0, spec.selector: Required value]"), "{}", two.message);
    let causes = &two.details.as_ref().map(|d| d.causes.clone()).unwrap_or_default();
    assert_eq!(causes[1].reason, "FieldValueRequired");
    assert_eq!(causes[1].field, "spec.selector");
}

#[test]
fn a_status_survives_a_round_trip() {
    let status = Status::too_many_requests("slow down", 3);
    let back: Status = serde_json::from_value(status.to_value()).expect("own output parses");
    assert_eq!(back, status);
    assert_eq!(back.retry_after(), Some(3));
}
