//! The strategy of Leases.

use proto_api::field::{ErrorList, Path};
use proto_api::names;
use serde_json::Value;

use super::super::strategy::Strategy;
use super::check::Report;
use super::json_fields::JsonFields;

/// The strategy of Leases.
#[derive(Debug)]
pub struct LeaseStrategy;

impl Strategy for LeaseStrategy {
    fn validate(&self, obj: &Value, errs: &mut ErrorList) {
        let (spec, path) = (obj.sub("spec"), Path::new("spec"));
        if let Some(seconds) = spec.opt_int("leaseDurationSeconds").filter(|s| *s <= 0) {
            errs.invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0");
        }
        if let Some(count) = spec.opt_int("leaseTransitions").filter(|c| *c < 0) {
            let detail = "must be greater than or equal to 0";
            errs.invalid(&path.child("leaseTransitions"), count, detail);
        }
        if let Some(strategy) = spec.opt_text("strategy") {
            let at = path.child("strategy").child("strategy");
            if strategy.contains('/') {
                errs.each(&at, strategy, names::qualified_name(strategy));
            } else if strategy != "OldestEmulationVersion" {
                errs.unsupported(&at, strategy, &["OldestEmulationVersion"]);
            }
        }
        if !spec.text("preferredHolder").is_empty() && spec.text("strategy").is_empty() {
            let detail = "may only be specified if `strategy` is defined";
            errs.forbidden(&path.child("preferredHolder"), detail);
        }
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}
