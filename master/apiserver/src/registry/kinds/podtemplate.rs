//! The strategy of PodTemplates.

use proto_api::field::{ErrorList, Path};
use serde_json::Value;

use super::super::strategy::Strategy;
use super::json_fields::{JsonFields, same};
use super::pod::{drop_disabled_spec, warnings};
use super::template;

/// The strategy of PodTemplates.
#[derive(Debug)]
pub struct PodTemplateStrategy;

fn drop_disabled(obj: &mut Value) {
    if let Some(spec) = obj.get_mut("template").and_then(|t| t.get_mut("spec")) {
        drop_disabled_spec(spec);
    }
}

impl Strategy for PodTemplateStrategy {
    fn prepare_for_create(&self, obj: &mut Value) {
        drop_disabled(obj);
    }

    fn prepare_for_update(&self, new: &mut Value, _old: &Value) {
        drop_disabled(new);
    }

    fn validate(&self, obj: &Value, errs: &mut ErrorList) {
        template::validate(obj.sub("template"), &Path::new("template"), errs);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        let template = obj.sub("template");
        if old.is_some_and(|o| same(o.sub("template"), template)) {
            return Vec::new();
        }
        warnings::spec(template.sub("spec"), template.sub("metadata"), &Path::new("template"), true)
    }
}
