//! Conditions and taints of nodes: which taints a node should have for its conditions. Pure; used by
//! `node_lifecycle.rs`, `taint_eviction.rs` and `pod_gc.rs`.

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub(crate) const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Finds a condition of the node by its type.
pub(crate) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// Returns the status of the Ready condition; `Unknown` for a node that never reported it.
pub(crate) fn ready_status(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |ready| ready.status.as_str())
}

/// Whether the node's Ready condition is True.
pub(crate) fn is_ready(node: &Node) -> bool {
    ready_status(node) == "True"
}

/// Returns the node's taints.
pub(crate) fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// Whether the node carries a taint of that key.
pub(crate) fn has_taint(node: &Node, key: &str) -> bool {
    taints(node).iter().any(|taint| taint.key == key)
}

/// Key and effect of every taint that this controller manages by conditions.
const MANAGED: [(&str, &str); 9] = [
    (NOT_READY, "NoSchedule"),
    (UNREACHABLE, "NoSchedule"),
    (NOT_READY, "NoExecute"),
    (UNREACHABLE, "NoExecute"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/network-unavailable", "NoSchedule"),
    (UNSCHEDULABLE, "NoSchedule"),
];

/// Change of the NoExecute taint of a node that is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoExecute {
    /// Add the taint: the node's pods are evicted.
    Add,
    /// Leave the taints as they are: no other node loses its pods.
    Keep,
    /// Remove the taint.
    Remove,
}

/// Whether the node has a NoExecute taint because of its Ready condition.
pub(crate) fn has_no_execute(node: &Node) -> bool {
    has(node, NOT_READY, "NoExecute") || has(node, UNREACHABLE, "NoExecute")
}

/// Returns the taints that the node should have; `None` when it has exactly those.
pub(crate) fn wanted_taints(node: &Node, no_execute: NoExecute, now: &Time) -> Option<Vec<Taint>> {
    let may_evict = |key: &str| match no_execute {
        NoExecute::Add => true,
        NoExecute::Keep => has(node, key, "NoExecute"),
        NoExecute::Remove => false,
    };
    let wanted = |key: &str, effect: &str| -> bool {
        let is = |kind: &str| condition(node, kind).is_some_and(|condition| condition.status == "True");
        let ready = ready_status(node);
        match key {
            NOT_READY if effect == "NoExecute" => ready == "False" && may_evict(key),
            UNREACHABLE if effect == "NoExecute" => ready == "Unknown" && may_evict(key),
            NOT_READY => ready == "False",
            UNREACHABLE => ready == "Unknown",
            "node.kubernetes.io/memory-pressure" => is("MemoryPressure"),
            "node.kubernetes.io/disk-pressure" => is("DiskPressure"),
            "node.kubernetes.io/pid-pressure" => is("PIDPressure"),
            "node.kubernetes.io/network-unavailable" => is("NetworkUnavailable"),
            UNSCHEDULABLE => node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true),
            _ => false,
        }
    };
    let managed = |taint: &Taint| MANAGED.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut result: Vec<Taint> = taints(node)
        .iter()
        .filter(|taint| !managed(taint) || wanted(&taint.key, &taint.effect))
        .cloned()
        .collect();
    for (key, effect) in MANAGED {
        if wanted(key, effect) && !has(node, key, effect) {
            result.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: Some(now.clone()),
                value: None,
            });
        }
    }
    (result != taints(node)).then_some(result)
}

fn has(node: &Node, key: &str, effect: &str) -> bool {
    taints(node).iter().any(|taint| taint.key == key && taint.effect == effect)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(ready: &str, taints: serde_json::Value) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n"}, "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}
        }))
        .unwrap()
    }

    fn keys(node: &Node, no_execute: NoExecute) -> Option<Vec<(String, String)>> {
        let now = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let taints = wanted_taints(node, no_execute, &now)?;
        Some(taints.into_iter().map(|taint| (taint.key, taint.effect)).collect())
    }

    fn pair(key: &str, effect: &str) -> (String, String) {
        (key.to_owned(), effect.to_owned())
    }

    #[test]
    fn a_lost_node_is_tainted_and_cleared_when_it_is_back() {
        let lost = node("Unknown", json!([{"key": "mine", "effect": "NoSchedule"}]));
        let expected =
            vec![pair("mine", "NoSchedule"), pair(UNREACHABLE, "NoSchedule"), pair(UNREACHABLE, "NoExecute")];
        assert_eq!(keys(&lost, NoExecute::Add), Some(expected));
        let back = node(
            "True",
            json!([
            {"key": "mine", "effect": "NoSchedule"},
            {"key": UNREACHABLE, "effect": "NoSchedule"}, {"key": UNREACHABLE, "effect": "NoExecute"}]),
        );
        assert_eq!(keys(&back, NoExecute::Keep), Some(vec![pair("mine", "NoSchedule")]));
        assert_eq!(keys(&node("True", json!([])), NoExecute::Keep), None);
    }

    #[test]
    fn when_all_nodes_are_lost_none_newly_loses_its_pods() {
        let lost = node("Unknown", json!([]));
        let no_schedule = pair(UNREACHABLE, "NoSchedule");
        assert_eq!(keys(&lost, NoExecute::Keep), Some(vec![no_schedule.clone()]));
        let no_execute = json!({"key": UNREACHABLE, "effect": "NoExecute"});
        let tainted = node("Unknown", json!([{"key": UNREACHABLE, "effect": "NoSchedule"}, no_execute]));
        assert_eq!(keys(&tainted, NoExecute::Keep), None, "who was to lose its pods still is");
        assert_eq!(keys(&tainted, NoExecute::Remove), Some(vec![no_schedule]));
    }

    #[test]
    fn a_cordoned_node_is_tainted() {
        let mut cordoned = node("True", json!([]));
        cordoned.spec.get_or_insert_default().unschedulable = Some(true);
        assert_eq!(keys(&cordoned, NoExecute::Keep), Some(vec![pair(UNSCHEDULABLE, "NoSchedule")]));
    }
}
