//! The quality of service (QoS) class of a pod, which is set in its status at creation.

use serde_json::Value;

use super::super::json_fields::JsonFields;
use super::resources::{Amounts, amounts};

/// Returns `Guaranteed`, `Burstable` or `BestEffort`, from CPU and memory of the pod or of all its
/// containers.
pub fn class(spec: &Value) -> &'static str {
    let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
    let mut all_limited = true;
    let whole = spec.sub("resources");
    if whole.entries("requests").len() + whole.entries("limits").len() > 0 {
        all_limited = collect(whole, &mut requests, &mut limits);
    } else {
        for container in spec.items("containers").iter().chain(spec.items("initContainers")) {
            all_limited &= collect(container.sub("resources"), &mut requests, &mut limits);
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    let equal = requests.len() == limits.len() && requests.iter().all(|(k, v)| limits.get(k) == Some(v));
    if all_limited && equal { "Guaranteed" } else { "Burstable" }
}

/// Adds the CPU and memory of `resources` to the sums; returns whether it limits both.
fn collect<'a>(resources: &'a Value, requests: &mut Amounts<'a>, limits: &mut Amounts<'a>) -> bool {
    let mut limited = 0;
    for (key, total) in [("requests", requests), ("limits", limits)] {
        for (name, value) in amounts(resources.entries(key)) {
            if !matches!(name, "cpu" | "memory") || !value.is_positive() {
                continue;
            }
            if key == "limits" {
                limited += 1;
            }
            total.entry(name).and_modify(|t| t.add(&value)).or_insert(value);
        }
    }
    limited == 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_without_requests_is_best_effort() {
        assert_eq!(class(&json!({"containers": [{"name": "a"}]})), "BestEffort");
    }

    #[test]
    fn equal_requests_and_limits_of_all_containers_guarantee() {
        let full =
            json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}});
        assert_eq!(class(&json!({"containers": [{"resources": full}]})), "Guaranteed");
        assert_eq!(class(&json!({"containers": [{"resources": full}, {}]})), "Burstable");
    }
}
