//! The state of a pod as controllers see it: active, ready, available, and which pods are deleted first. Used
//! by the ReplicaSet, Deployment, endpoints and node controllers.

use std::cmp::Ordering;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

/// Annotation that ranks a pod's deletion among its siblings: those with a lower cost are deleted first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Returns `status.phase`; empty when there is none yet.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whether all containers of the pod have ended for good.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod counts as a replica: it has neither ended nor is being deleted.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether the pod is being deleted and has not ended yet.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_some()
}

/// Finds a condition of the pod by its type.
pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// Whether the pod's Ready condition is True.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// Returns when the pod became ready; `None` when it is not ready.
fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// Whether the pod has been ready for `min_ready_seconds`.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    if !is_ready(pod) {
        return false;
    }
    if min_ready_seconds == 0 {
        return true;
    }
    ready_since(pod).is_some_and(|since| now.as_second() - since.as_second() >= i64::from(min_ready_seconds))
}

/// Returns the node that the pod is bound to; `None` when it is not bound.
pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|status| status.restart_count).max().unwrap_or(0)
}

fn deletion_cost(pod: &Pod) -> i32 {
    let cost = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(DELETION_COST));
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// A pod, and the number of its owner's family's pods on the same node.
pub(crate) struct Ranked {
    pub pod: Arc<Pod>,
    pub rank: usize,
}

/// Orders pods so that those to delete first come first: unassigned, pending, not ready, with a lower
/// deletion cost, with more siblings on the node, ready for a shorter time, restarted more often, younger.
/// Ages are compared by order of magnitude, so that it is not always the same generation that is deleted.
pub(crate) fn deletion_order(left: &Ranked, right: &Ranked, now: Timestamp) -> Ordering {
    let (a, b) = (&*left.pod, &*right.pod);
    let phase_rank = |pod: &Pod| match phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    node_name(a)
        .is_some()
        .cmp(&node_name(b).is_some())
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| right.rank.cmp(&left.rank))
        .then_with(|| younger_first(ready_since(a), ready_since(b), a, b, now))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| {
            let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            younger_first(created(a), created(b), a, b, now)
        })
}

/// Orders the younger first; a missing time counts as youngest, and times of the same order of magnitude
/// are ordered by UID.
fn younger_first(
    a_time: Option<Timestamp>,
    b_time: Option<Timestamp>,
    a: &Pod,
    b: &Pod,
    now: Timestamp,
) -> Ordering {
    let bucket = |time: Timestamp| {
        let age = now.as_second().saturating_sub(time.as_second());
        if age <= 0 { -1 } else { i64::from(age.ilog2()) }
    };
    match (a_time, b_time) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(a_time), Some(b_time)) if a_time == b_time => Ordering::Equal,
        (Some(a_time), Some(b_time)) => {
            bucket(a_time).cmp(&bucket(b_time)).then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn unassigned_then_pending_then_unready_then_doubled_up_pods_go_first() {
        let running = |uid: &str, ready: &str| {
            pod(json!({"metadata": {"uid": uid}, "spec": {"nodeName": "n", "containers": []},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}}))
        };
        let mut ranked = [
            Ranked { pod: running("lonely", "True"), rank: 1 },
            Ranked { pod: running("doubled", "True"), rank: 2 },
            Ranked { pod: running("unready", "False"), rank: 1 },
            Ranked {
                pod: pod(json!({"metadata": {"uid": "pending"}, "spec": {"nodeName": "n", "containers": []},
                    "status": {"phase": "Pending"}})),
                rank: 1,
            },
            Ranked { pod: pod(json!({"metadata": {"uid": "unassigned"}})), rank: 0 },
        ];
        ranked.sort_by(|a, b| deletion_order(a, b, at(1000)));
        let order: Vec<_> = ranked.iter().map(|ranked| ranked.pod.metadata.uid.clone().unwrap()).collect();
        assert_eq!(order, ["unassigned", "pending", "unready", "doubled", "lonely"]);
    }

    #[test]
    fn a_pod_is_available_only_after_min_ready_seconds() {
        let pod = pod(json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:01:40Z"}]}}));
        assert!(is_available(&pod, 0, at(100)));
        assert!(!is_available(&pod, 10, at(109)));
        assert!(is_available(&pod, 10, at(110)));
    }
}
