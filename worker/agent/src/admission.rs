//! Node-side admission: checks whether a pod that is bound to this node fits. A pod that does not fit fails,
//! as in kubelet, and its controller creates another.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod;
use crate::resources::{Amounts, add, amount, pod_requests};

/// Reason why a pod is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRejection {
    /// `status.reason`, such as `OutOfcpu`.
    pub reason: String,
    /// `status.message` without its prefix.
    pub message: String,
}

/// Checks `pod` against the node and the pods in `active`, which already hold resources.
///
/// `allocatable` is what this agent measured. The Node may have more in its status: extended resources that
/// somebody else announced there. One that the pod asks for and the Node does not have is ignored, as
/// kubelet does (`removeMissingExtendedResources`): the scheduler has seen to it.
pub fn admit(
    pod: &Pod,
    node: Option<&Node>,
    allocatable: &BTreeMap<String, Quantity>,
    active: &[&Pod],
) -> Result<(), PodRejection> {
    let mut used = Amounts::new();
    for other in active {
        add(&mut used, &pod_requests(pod::spec(other)));
        *used.entry("pods".to_owned()).or_default() += 1;
    }
    let mut requested = pod_requests(pod::spec(pod));
    requested.insert("pods".to_owned(), 1);
    let announced = node.and_then(|node| node.status.as_ref()?.allocatable.as_ref());
    for (name, wanted) in &requested {
        let capacity = allocatable.get(name).or_else(|| announced?.get(name).filter(|_| is_extended(name)));
        let Some(capacity) = capacity.map(|q| amount(name, q)) else {
            if *wanted == 0 || name == "ephemeral-storage" || is_extended(name) {
                continue;
            }
            return Err(out_of(name, *wanted, 0, 0));
        };
        let in_use = used.get(name).copied().unwrap_or(0);
        if *wanted > 0 && in_use.saturating_add(*wanted) > capacity {
            return Err(out_of(name, *wanted, in_use, capacity));
        }
    }
    if node.is_some_and(|node| !fits_node(pod, node)) {
        return Err(PodRejection {
            reason: "NodeAffinity".to_owned(),
            message: "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
                .to_owned(),
        });
    }
    Ok(())
}

/// Returns whether `resource` is an extended one: of a domain that is not Kubernetes' own.
fn is_extended(resource: &str) -> bool {
    resource.split_once('/').is_some_and(|(domain, _)| {
        domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io") && !domain.starts_with("requests.")
    })
}

fn out_of(resource: &str, requested: i64, used: i64, capacity: i64) -> PodRejection {
    PodRejection {
        reason: format!("OutOf{resource}"),
        message: format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        ),
    }
}

/// Returns whether the node matches the pod's nodeSelector and required node affinity.
fn fits_node(pod: &Pod, node: &Node) -> bool {
    let spec = pod::spec(pod);
    let labels = node.metadata.labels.clone().unwrap_or_default();
    if spec.node_selector.iter().flatten().any(|(key, value)| labels.get(key) != Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let Some(required) =
        affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
    else {
        return true;
    };
    let name = BTreeMap::from([("metadata.name".to_owned(), node.metadata.name.clone().unwrap_or_default())]);
    required.node_selector_terms.iter().any(|term| {
        let by_label = term.match_expressions.as_deref().unwrap_or_default();
        let by_field = term.match_fields.as_deref().unwrap_or_default();
        !(by_label.is_empty() && by_field.is_empty())
            && by_label.iter().all(|requirement| holds(requirement, &labels))
            && by_field.iter().all(|requirement| holds(requirement, &name))
    })
}

fn holds(requirement: &NodeSelectorRequirement, values: &BTreeMap<String, String>) -> bool {
    let value = values.get(&requirement.key);
    let listed = requirement.values.as_deref().unwrap_or_default();
    let compare = |test: fn(i64, i64) -> bool| {
        let (Some(value), Some(bound)) =
            (value.and_then(|v| v.parse().ok()), listed.first().and_then(|v| v.parse().ok()))
        else {
            return false;
        };
        test(value, bound)
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| listed.contains(v)),
        "NotIn" => value.is_none_or(|v| !listed.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|value, bound| value > bound),
        "Lt" => compare(|value, bound| value < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn cpu(amount: &str) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]}))
    }

    #[test]
    fn a_pod_beyond_the_nodes_cpu_or_count_is_refused() {
        let allocatable: BTreeMap<String, Quantity> =
            [("cpu", "2"), ("pods", "2")].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned()))).into();
        let (one, rest) = (cpu("1500m"), cpu("0"));
        let rejection = admit(&cpu("1"), None, &allocatable, &[&one]).unwrap_err();
        assert_eq!(rejection.reason, "OutOfcpu");
        assert_eq!(
            rejection.message,
            "Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000"
        );
        assert!(admit(&cpu("500m"), None, &allocatable, &[&one]).is_ok());
        assert!(admit(&cpu("1e99"), None, &allocatable, &[&one]).is_err());
        let rejection = admit(&rest, None, &allocatable, &[&one, &rest]).unwrap_err();
        assert_eq!(rejection.reason, "OutOfpods");
    }

    #[test]
    fn extended_resources_are_those_of_the_node_object() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"},
            "status": {"allocatable": {"example.com/widget": "10", "hugepages-2Mi": "4Mi"}}}))
        .unwrap();
        let allocatable = BTreeMap::from([("pods".to_owned(), Quantity("10".to_owned()))]);
        let asks = |resource: &str, amount: &str| {
            pod(json!({"containers": [{"name": "c", "resources": {"requests": {resource: amount}}}]}))
        };
        let eight = asks("example.com/widget", "8");
        assert_eq!(admit(&eight, Some(&node), &allocatable, &[]), Ok(()));
        let rejection = admit(&eight, Some(&node), &allocatable, &[&eight]).unwrap_err();
        assert_eq!(rejection.reason, "OutOfexample.com/widget");
        assert_eq!(
            rejection.message,
            "Node didn't have enough resource: example.com/widget, requested: 8, used: 8, capacity: 10"
        );
        assert_eq!(admit(&asks("example.com/unknown", "1"), Some(&node), &allocatable, &[]), Ok(()));
        assert!(admit(&asks("hugepages-2Mi", "2Mi"), Some(&node), &allocatable, &[]).is_err());
    }

    #[test]
    fn a_pod_for_other_nodes_is_refused() {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"zone": "a", "gen": "7"}}}))
                .unwrap();
        let allocatable = BTreeMap::from([("pods".to_owned(), Quantity("10".to_owned()))]);
        let check = |spec: serde_json::Value| admit(&pod(spec), Some(&node), &allocatable, &[]).is_ok();
        assert!(check(json!({"containers": [], "nodeSelector": {"zone": "a"}})));
        assert!(!check(json!({"containers": [], "nodeSelector": {"zone": "b"}})));
        let affinity = |operator: &str, values: serde_json::Value| {
            json!({"containers": [], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchExpressions": [{"key": "gen", "operator": operator, "values": values}]}]}}}})
        };
        assert!(check(affinity("Gt", json!(["6"]))));
        assert!(!check(affinity("NotIn", json!(["7"]))));
    }
}
