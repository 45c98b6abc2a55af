//! Priority: sets the integer of a pod's priority class. Only the two built-in classes exist until
//! PriorityClass is a kind.

use proto_api::status::Status;
use serde_json::Value;

use crate::json_fields;

/// Sets priority and preemption policy of a new pod; refuses other values than those of its class.
pub fn admit_create(pod: &mut Value) -> Result<(), Status> {
    let name = json_fields::name(pod).to_owned();
    let forbidden = |why: String| Err(Status::forbidden("", "pods", &name, why));
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    let class = spec.get("priorityClassName").and_then(Value::as_str).unwrap_or_default();
    let priority: i64 = match class {
        "" => 0,
        "system-cluster-critical" => 2_000_000_000,
        "system-node-critical" => 2_000_001_000,
        other => return forbidden(format!("no PriorityClass with name {other} was found")),
    };
    if let Some(wanted) = spec.get("priority").and_then(Value::as_i64).filter(|w| *w != priority) {
        return forbidden(format!(
            "the integer value of priority ({wanted}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
        ));
    }
    let policy =
        spec.get("preemptionPolicy").and_then(Value::as_str).unwrap_or("PreemptLowerPriority").to_owned();
    if policy != "PreemptLowerPriority" {
        return forbidden(format!(
            "the string value of PreemptionPolicy ({policy}) must not be provided in pod spec; priority admission controller computed PreemptLowerPriority from the given PriorityClass name"
        ));
    }
    spec.insert("priority".to_owned(), Value::from(priority));
    spec.insert("preemptionPolicy".to_owned(), Value::from(policy));
    Ok(())
}

/// Keeps the priority and preemption policy set at creation where an update leaves them out.
pub fn admit_update(pod: &mut Value, old: &Value) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for key in ["priority", "preemptionPolicy"] {
        if let (false, Some(value)) = (spec.contains_key(key), old.get("spec").and_then(|s| s.get(key))) {
            spec.insert(key.to_owned(), value.clone());
        }
    }
}
