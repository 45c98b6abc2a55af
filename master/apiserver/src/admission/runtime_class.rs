//! RuntimeClass: refuses pods that ask for another runtime, mostly for its isolation, because they must not
//! run without it. Until RuntimeClass is a kind, no class exists.

use proto_api::status::Status;
use serde_json::Value;

use super::Attributes;
use crate::json_fields::{self, JsonFields};

/// Refuses a new pod that names a RuntimeClass, or sets the overhead that only a RuntimeClass may define.
///
/// # Errors
///
/// 403 as Kubernetes words it.
pub fn check(attributes: &Attributes<'_>, pod: &Value) -> Result<(), Status> {
    let spec = pod.sub("spec");
    let why = match spec.opt_text("runtimeClassName") {
        Some(class) => format!("pod rejected: RuntimeClass {class:?} not found"),
        None if spec.has("overhead") => {
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".to_owned()
        }
        None => return Ok(()),
    };
    Err(attributes.forbidden(json_fields::name(pod), why))
}
