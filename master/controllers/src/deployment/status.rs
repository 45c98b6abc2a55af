//! Computes the status of a Deployment with the conditions Available, Progressing and ReplicaFailure. Pure;
//! called by `deployment.rs`.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::arithmetic::{max_unavailable, replicas, sum, total_available, total_size};

pub(crate) const AVAILABLE: &str = "Available";
pub(crate) const PROGRESSING: &str = "Progressing";
pub(crate) const REPLICA_FAILURE: &str = "ReplicaFailure";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
pub(crate) const TIMED_OUT: &str = "ProgressDeadlineExceeded";

/// Whether the Deployment has a progress deadline.
pub(crate) fn has_deadline(deployment: &Deployment) -> bool {
    let seconds = deployment.spec.as_ref().and_then(|spec| spec.progress_deadline_seconds);
    seconds.is_some_and(|seconds| seconds != i32::MAX)
}

/// Creates a condition whose times are `now`.
pub(crate) fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: impl Into<String>,
    now: Timestamp,
) -> DeploymentCondition {
    let now = Timestamp::from_second(now.as_second()).unwrap_or_default();
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Finds the condition of a type.
pub(crate) fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// Replaces the condition of the same type, unless its status and reason are the same.
pub(crate) fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    if let Some(current) = find(status, &new.type_) {
        if current.status == new.status && current.reason == new.reason {
            return;
        }
        if current.status == new.status {
            new.last_transition_time.clone_from(&current.last_transition_time);
        }
    }
    remove(status, &new.type_);
    status.conditions.get_or_insert_default().push(new);
}

/// Removes the condition of a type.
pub(crate) fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != kind);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

fn nonzero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

/// Computes the counts over all ReplicaSets, and the Available condition.
pub(crate) fn compute(
    deployment: &Deployment,
    new_set: Option<&ReplicaSet>,
    all: &[&ReplicaSet],
    now: Timestamp,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let sum = |count: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
        sum(all.iter().filter_map(|set| set.status.as_ref()).map(count))
    };
    let available = total_available(all.iter().copied());
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: nonzero(sum(|status| status.replicas)),
        updated_replicas: new_set
            .and_then(|set| set.status.as_ref())
            .and_then(|status| nonzero(status.replicas)),
        ready_replicas: nonzero(sum(|status| status.ready_replicas.unwrap_or(0))),
        available_replicas: nonzero(available),
        unavailable_replicas: nonzero((total_size(all.iter().copied()) - available).max(0)),
        terminating_replicas: Some(sum(|status| status.terminating_replicas.unwrap_or(0))),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let enough = available >= replicas(deployment) - max_unavailable(deployment);
    let (value, reason, message) = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(&mut status, condition(AVAILABLE, value, reason, message, now));
    status
}

/// Whether every replica has the newest template and is available.
pub(crate) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = replicas(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let count = |value: Option<i32>| value.unwrap_or(0);
    let stale = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(new.updated_replicas) > count(old.updated_replicas)
        || stale(new) < stale(old)
        || count(new.ready_replicas) > count(old.ready_replicas)
        || count(new.available_replicas) > count(old.available_replicas)
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let Some(current) = find(status, PROGRESSING) else { return false };
    match current.reason.as_deref() {
        Some(NEW_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => deadline_of(deployment, current).is_some_and(|deadline| now > deadline),
    }
}

fn deadline_of(deployment: &Deployment, current: &DeploymentCondition) -> Option<Timestamp> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    let since = current.last_update_time.as_ref()?.0;
    Timestamp::from_second(since.as_second() + i64::from(seconds)).ok()
}

/// Computes the status as [`compute`] does, with the Progressing and ReplicaFailure conditions of a rollout.
pub(crate) fn compute_rollout(
    deployment: &Deployment,
    new_set: Option<&ReplicaSet>,
    all: &[&ReplicaSet],
    now: Timestamp,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = compute(deployment, new_set, all, now);
    if !has_deadline(deployment) {
        remove(&mut status, PROGRESSING);
    }
    let current = find(&old, PROGRESSING);
    let done = status.replicas == status.updated_replicas
        && current.is_some_and(|current| current.reason.as_deref() == Some(NEW_SET_AVAILABLE));
    if has_deadline(deployment) && !done {
        let subject = match new_set {
            Some(set) => format!("ReplicaSet {:?}", set.metadata.name.as_deref().unwrap_or_default()),
            None => format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or_default()),
        };
        if is_complete(deployment, &status) {
            let message = format!("{subject} has successfully progressed.");
            set(&mut status, condition(PROGRESSING, "True", NEW_SET_AVAILABLE, message, now));
        } else if is_progressing(&old, &status) {
            let message = format!("{subject} is progressing.");
            let mut new = condition(PROGRESSING, "True", "ReplicaSetUpdated", message, now);
            if let Some(current) = current.filter(|current| current.status == "True") {
                new.last_transition_time.clone_from(&current.last_transition_time);
            }
            // Removed first, so that the time of the last progress is updated even when the reason stays
            // the same.
            remove(&mut status, PROGRESSING);
            set(&mut status, new);
        } else if has_timed_out(deployment, &status, now) {
            let message = format!("{subject} has timed out progressing.");
            set(&mut status, condition(PROGRESSING, "False", TIMED_OUT, message, now));
        }
    }
    match replica_failure(new_set, all) {
        Some(failure) => set(&mut status, failure),
        None => remove(&mut status, REPLICA_FAILURE),
    }
    status
}

/// Returns the first failure condition of a ReplicaSet; that of the new set takes precedence.
fn replica_failure(new_set: Option<&ReplicaSet>, all: &[&ReplicaSet]) -> Option<DeploymentCondition> {
    let failure = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        let failure = conditions.iter().find(|condition| condition.type_ == REPLICA_FAILURE)?;
        Some(DeploymentCondition {
            type_: REPLICA_FAILURE.to_owned(),
            status: failure.status.clone(),
            reason: failure.reason.clone(),
            message: failure.message.clone(),
            last_transition_time: failure.last_transition_time.clone(),
            last_update_time: failure.last_transition_time.clone(),
        })
    };
    new_set.and_then(failure).or_else(|| all.iter().find_map(|set| failure(set)))
}

/// Returns when to check again whether a rollout is stuck; `None` when it is complete or known to be stuck.
pub(crate) fn next_check(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let current = find(status, PROGRESSING)?;
    if is_complete(deployment, status) || current.reason.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    let left = deadline_of(deployment, current)?.as_second() - now.as_second();
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn deployment() -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 2},
            "spec": {"replicas": 2, "selector": {}, "template": {}, "progressDeadlineSeconds": 60}
        }))
        .unwrap()
    }

    fn set_with(available: i32) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": "web-1"}, "spec": {"replicas": 2, "selector": {}},
            "status": {"replicas": 2, "readyReplicas": available, "availableReplicas": available}}))
        .unwrap()
    }

    #[test]
    fn a_rollout_progresses_and_completes() {
        let mut deployment = deployment();
        let half = set_with(1);
        let status = compute_rollout(&deployment, Some(&half), &[&half], at(10));
        let progressing = find(&status, PROGRESSING).unwrap();
        assert_eq!(progressing.reason.as_deref(), Some("ReplicaSetUpdated"));
        assert_eq!(progressing.message.as_deref(), Some("ReplicaSet \"web-1\" is progressing."));
        assert_eq!(find(&status, AVAILABLE).unwrap().status, "False");
        assert_eq!(status.unavailable_replicas, Some(1));
        deployment.status = Some(status);
        let full = set_with(2);
        let status = compute_rollout(&deployment, Some(&full), &[&full], at(20));
        let progressing = find(&status, PROGRESSING).unwrap();
        assert_eq!(progressing.reason.as_deref(), Some(NEW_SET_AVAILABLE));
        assert_eq!(progressing.last_transition_time, Some(Time(at(10))), "its status did not change");
        assert_eq!(find(&status, AVAILABLE).unwrap().status, "True");
        assert!(is_complete(&deployment, &status));
        assert_eq!(next_check(&deployment, &status, at(20)), None);
    }

    #[test]
    fn a_rollout_without_progress_times_out_after_its_deadline() {
        let mut deployment = deployment();
        let half = set_with(1);
        deployment.status = Some(compute_rollout(&deployment, Some(&half), &[&half], at(10)));
        let status = compute_rollout(&deployment, Some(&half), &[&half], at(70));
        assert_eq!(find(&status, PROGRESSING).unwrap().status, "True");
        assert_eq!(next_check(&deployment, &status, at(60)), Some(Duration::from_secs(11)));
        let status = compute_rollout(&deployment, Some(&half), &[&half], at(71));
        assert_eq!(find(&status, PROGRESSING).unwrap().reason.as_deref(), Some(TIMED_OUT));
    }
}
