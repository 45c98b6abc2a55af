//! The strategy of Deployments.

use proto_api::field::{ErrorList, Path};
use serde_json::{Value, json};

use super::super::strategy::Strategy;
use super::check::{Report, non_negative_field};
use super::json_fields::{JsonFields, keep, same, set};
use super::{template, workload};

/// The strategy of Deployments.
#[derive(Debug)]
pub struct DeploymentStrategy;

fn validate_spec(spec: &Value, errs: &mut ErrorList) {
    let path = Path::new("spec");
    non_negative_field(spec, "replicas", &path, errs);
    workload::selector_and_template(spec, &path, errs);
    rollout(spec.sub("strategy"), &path.child("strategy"), errs);
    non_negative_field(spec, "minReadySeconds", &path, errs);
    non_negative_field(spec, "revisionHistoryLimit", &path, errs);
    if let Some(deadline) = spec.opt_int("progressDeadlineSeconds") {
        non_negative_field(spec, "progressDeadlineSeconds", &path, errs);
        if deadline <= spec.int("minReadySeconds") {
            let at = path.child("progressDeadlineSeconds");
            errs.invalid(&at, deadline, "must be greater than minReadySeconds");
        }
    }
}

fn rollout(strategy: &Value, path: &Path, errs: &mut ErrorList) {
    let at = path.child("rollingUpdate");
    match strategy.text("type") {
        "Recreate" => {
            if strategy.has("rollingUpdate") {
                errs.forbidden(&at, "may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "RollingUpdate" => match strategy.at("rollingUpdate") {
            None => errs.required(&at, "this should be defaulted and never be nil"),
            Some(rolling) => {
                let (unavailable, surge) = (rolling.sub("maxUnavailable"), rolling.sub("maxSurge"));
                let unavailable_path = at.child("maxUnavailable");
                workload::count_or_percent(unavailable, &unavailable_path, errs);
                workload::count_or_percent(surge, &at.child("maxSurge"), errs);
                if workload::is_none(unavailable) && workload::is_none(surge) {
                    let detail = "may not be 0 when `maxSurge` is 0";
                    errs.invalid(&unavailable_path, unavailable.clone(), detail);
                }
                workload::at_most_all(unavailable, &unavailable_path, errs);
            }
        },
        _ => errs.unsupported(path, strategy.clone(), &["Recreate", "RollingUpdate"]),
    }
}

impl Strategy for DeploymentStrategy {
    fn prepare_for_create(&self, obj: &mut Value) {
        set(obj, "status", json!({}));
        workload::drop_disabled(obj);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        workload::drop_disabled(new);
        // Changed annotations bump the generation too: the controller copies them to ReplicaSets.
        let (meta, before) = (new.sub("metadata"), old.sub("metadata"));
        if !same(meta.sub("annotations"), before.sub("annotations")) {
            let next = before.int("generation") + 1;
            if let Some(meta) = new.get_mut("metadata") {
                set(meta, "generation", next);
            }
        }
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        if let Some(meta) = new.get_mut("metadata") {
            keep(meta, old.sub("metadata"), "labels");
        }
    }

    fn validate(&self, obj: &Value, errs: &mut ErrorList) {
        validate_spec(obj.sub("spec"), errs);
    }

    fn validate_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        validate_spec(new.sub("spec"), errs);
        workload::selector_immutable(new, old, errs);
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        let status = new.sub("status");
        let counters = [
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "collisionCount",
        ];
        workload::counters(status, &counters, errs);
        for low in ["updatedReplicas", "readyReplicas", "availableReplicas"] {
            workload::bounded(status, low, "replicas", errs);
        }
        workload::bounded(status, "availableReplicas", "readyReplicas", errs);
        workload::collisions(new, old, errs);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        template::warnings(obj, old, &Path::new("spec").child("template"), true)
    }
}
