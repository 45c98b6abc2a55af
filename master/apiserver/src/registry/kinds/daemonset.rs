//! The strategy of DaemonSets.

use proto_api::field::{ErrorList, Path};
use serde_json::{Map, Value, json};

use super::super::strategy::Strategy;
use super::check::{self, Report, non_negative_field};
use super::json_fields::{self, JsonFields, ensure, same, set, set_default};
use super::{template, workload};

/// The strategy of DaemonSets.
#[derive(Debug)]
pub struct DaemonSetStrategy;

fn rollout(strategy: &Value, path: &Path, errs: &mut ErrorList) {
    let at = path.child("rollingUpdate");
    match strategy.text("type") {
        "OnDelete" => {}
        "RollingUpdate" => match strategy.at("rollingUpdate") {
            None => errs.required(&at, ""),
            Some(rolling) => rolling_update(rolling, &at, errs),
        },
        _ => errs.unsupported(path, strategy.clone(), &["RollingUpdate", "OnDelete"]),
    }
}

fn rolling_update(rolling: &Value, path: &Path, errs: &mut ErrorList) {
    let (unavailable, surge) = (rolling.sub("maxUnavailable"), rolling.sub("maxSurge"));
    let (unavailable_path, surge_path) = (path.child("maxUnavailable"), path.child("maxSurge"));
    workload::count_or_percent(unavailable, &unavailable_path, errs);
    workload::count_or_percent(surge, &surge_path, errs);
    workload::at_most_all(unavailable, &unavailable_path, errs);
    workload::at_most_all(surge, &surge_path, errs);
    match (workload::is_none(unavailable), workload::is_none(surge)) {
        (false, false) => {
            errs.invalid(&surge_path, surge.clone(), "may not be set when maxUnavailable is non-zero");
        }
        (true, true) => errs.required(&unavailable_path, "cannot be 0 when maxSurge is 0"),
        _ => {}
    }
}

impl Strategy for DaemonSetStrategy {
    fn prepare_for_create(&self, obj: &mut Value) {
        let counters =
            ["currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady"];
        set(obj, "status", counters.iter().map(|c| ((*c).to_owned(), json!(0))).collect::<Map<_, _>>());
        workload::drop_disabled(obj);
        let notes = ensure(obj, "metadata").and_then(|m| ensure(m, "annotations"));
        if let Some(notes) = notes {
            set_default(notes, TEMPLATE_GENERATION, "1");
        }
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        workload::drop_disabled(new);
        let before = json_fields::annotations(old).text(TEMPLATE_GENERATION).unwrap_or("1");
        let mut generation = before.parse::<i64>().unwrap_or(1);
        if !same(new.sub("spec").sub("template"), old.sub("spec").sub("template")) {
            generation += 1;
        }
        let notes = ensure(new, "metadata").and_then(|m| ensure(m, "annotations"));
        if let Some(notes) = notes {
            set(notes, TEMPLATE_GENERATION, generation.to_string());
        }
    }

    fn validate(&self, obj: &Value, errs: &mut ErrorList) {
        let (spec, path) = (obj.sub("spec"), Path::new("spec"));
        let (at, template_path) = (path.child("selector"), path.child("template"));
        let template = spec.sub("template");
        check::label_selector(spec.sub("selector"), &at, errs);
        if let Ok(selector) = workload::selector(spec) {
            workload::matches_template(&selector, template, &template_path, errs);
        }
        if let Some(selector) = spec.at("selector").filter(|s| workload::is_empty(s)) {
            errs.invalid(&at, selector.clone(), "empty selector is invalid for daemonset");
        }
        template::validate(template, &template_path, errs);
        template::keeps_running(template, "DaemonSet", &template_path, errs);
        non_negative_field(spec, "minReadySeconds", &path, errs);
        rollout(spec.sub("updateStrategy"), &path.child("updateStrategy"), errs);
        non_negative_field(spec, "revisionHistoryLimit", &path, errs);
    }

    fn validate_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        workload::selector_immutable(new, old, errs);
        self.validate(new, errs);
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errs: &mut ErrorList) {
        let counters = [
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ];
        workload::counters(new.sub("status"), &counters, errs);
        workload::collisions(new, old, errs);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        template::warnings(obj, old, &Path::new("spec").child("template"), false)
    }
}

/// Annotation in which apps/v1 keeps the template's generation.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";
