//! DefaultTolerationSeconds: adds tolerations that limit how long a pod stays on a node that is not ready or
//! not reachable.

use serde_json::{Value, json};

use crate::settings::ClusterSettings;

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Adds those of these tolerations that the pod does not have.
pub fn admit(settings: &ClusterSettings, pod: &mut Value) {
    let seconds = settings.default_toleration_seconds;
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let mut tolerations = spec.get("tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
    let before = tolerations.clone();
    let text = |t: &Value, key: &str| t.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    for taint in TAINTS {
        let tolerated = before.iter().any(|t| {
            let (key, effect) = (text(t, "key"), text(t, "effect"));
            (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            tolerations.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds,
            }));
        }
    }
    if tolerations.len() > before.len() {
        spec.insert("tolerations".to_owned(), Value::Array(tolerations));
    }
}
