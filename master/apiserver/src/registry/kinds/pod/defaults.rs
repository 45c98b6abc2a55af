//! The one default of Pods that the schema table cannot express: requests of a whole pod (KEP-2837).

use serde_json::{Value, json};

use super::super::json_fields::{JsonFields, ensure, is_zero, set};
use super::resources;

/// Sets the requests of a pod that has limits of its own, from its containers' requests and these limits.
pub fn pod_level_requests(spec: &mut Value) {
    let whole = spec.sub("resources");
    if whole.entries("limits").is_empty() {
        return;
    }
    let supported = |name: &str| matches!(name, "cpu" | "memory") || name.starts_with("hugepages-");
    let mut requests = whole.sub("requests").clone();
    if !requests.is_object() {
        requests = json!({});
    }
    for (name, amount) in resources::aggregate(spec, "requests") {
        if matches!(name, "cpu" | "memory") && requests.get(name).is_none() {
            set(&mut requests, name, amount.to_string());
        }
    }
    for (name, value) in whole.entries("limits").iter().filter(|(n, _)| supported(n)) {
        if requests.get(name).is_none() {
            set(&mut requests, name, value.clone());
        }
    }
    if !is_zero(&requests)
        && let Some(whole) = ensure(spec, "resources")
    {
        set(whole, "requests", requests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_with_limits_of_its_own_requests_what_its_containers_do() {
        let mut spec = json!({
            "resources": {"limits": {"cpu": "2", "memory": "1Gi"}},
            "containers": [{"resources": {"requests": {"cpu": "300m"}}}, {"resources": {"requests": {"cpu": "200m"}}}],
        });
        pod_level_requests(&mut spec);
        assert_eq!(spec["resources"]["requests"], json!({"cpu": "500m", "memory": "1Gi"}));
    }
}
