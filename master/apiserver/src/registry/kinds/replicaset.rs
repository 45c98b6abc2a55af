//! The strategy of ReplicaSets.

use proto_api::field::{ErrorList, Path};
use serde_json::{Value, json};

use super::super::strategy::Strategy;
use super::check::non_negative_field;
use super::json_fields::{JsonFields, set};
use super::{template, workload};

/// The strategy of ReplicaSets.
#[derive(Debug)]
pub struct ReplicaSetStrategy;

impl Strategy for ReplicaSetStrategy {
    fn prepare_for_create(&self, obj: &mut Value) {
        set(obj, "status", json!({"replicas": 0}));
        workload::drop_disabled(obj);
    }

    fn prepare_for_update(&self, new: &mut Value, _old: &Value) {
        workload::drop_disabled(new);
    }

    fn validate(&self, obj: &Value, errs: &mut ErrorList) {
        let (spec, path) = (obj.sub("spec"), Path::new("spec"));
        non_negative_field(spec, "replicas", &path, errs);
        non_negative_field(spec, "minReadySeconds", &path, errs);
        workload::selector_and_template(spec, &path, errs);
    }

    fn validate_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        self.validate(new, errs);
        workload::selector_immutable(new, old, errs);
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errs: &mut ErrorList) {
        let status = new.sub("status");
        let counters = [
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "observedGeneration",
            "terminatingReplicas",
        ];
        workload::counters(status, &counters, errs);
        for low in ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"] {
            workload::bounded(status, low, "replicas", errs);
        }
        workload::bounded(status, "availableReplicas", "readyReplicas", errs);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        template::warnings(obj, old, &Path::new("spec").child("template"), true)
    }
}
