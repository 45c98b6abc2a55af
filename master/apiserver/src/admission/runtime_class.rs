//! RuntimeClass: a pod that asks for another runtime, mostly for its isolation, must not run without it. There are no
//! RuntimeClasses until they are a kind here, so every name is one that is not found.

use proto_api::status::Status;
use serde_json::Value;

use super::Attributes;
use crate::read::{self, Read};

/// Refuses a new pod whose RuntimeClass, or the overhead that one would define, is not there.
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
    Err(attributes.forbidden(read::name(pod), why))
}
