//! The status of a ReplicaSet: computed from the pods it controls, written when it differs. Called by
//! `replicaset.rs`.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::PostParams;

use crate::context::Context;
use crate::error::{Error, is_conflict};
use crate::pod_state::{is_available, is_ready};

const REPLICA_FAILURE: &str = "ReplicaFailure";

/// Converts a count to an API field: `None` for zero.
pub(crate) fn nonzero(count: usize) -> Option<i32> {
    i32::try_from(count).ok().filter(|count| *count != 0)
}

/// Computes the status of `set` from its active pods, the number of terminating ones, and why scaling failed.
pub(super) fn compute(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<&Error>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let template_labels =
        spec.template.and_then(|template| template.metadata).and_then(|meta| meta.labels).unwrap_or_default();
    let labeled = |pod: &&Arc<Pod>| {
        let labels = pod.metadata.labels.as_ref();
        template_labels.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    };
    let mut status = set.status.clone().unwrap_or_default();
    let missing = spec.replicas.unwrap_or(1) > i32::try_from(active.len()).unwrap_or(i32::MAX);
    set_failure(&mut status, failure, missing, now);
    status.replicas = i32::try_from(active.len()).unwrap_or(i32::MAX);
    status.fully_labeled_replicas = nonzero(active.iter().filter(labeled).count());
    status.ready_replicas = nonzero(active.iter().filter(|pod| is_ready(pod)).count());
    status.available_replicas =
        nonzero(active.iter().filter(|pod| is_available(pod, min_ready, now)).count());
    status.terminating_replicas = i32::try_from(terminating).ok();
    status.observed_generation = set.metadata.generation;
    status
}

/// Sets the ReplicaFailure condition when scaling fails and removes it when it succeeds; keeps one that is
/// set.
fn set_failure(status: &mut ReplicaSetStatus, failure: Option<&Error>, missing: bool, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    let present = conditions.iter().any(|condition| condition.type_ == REPLICA_FAILURE);
    match failure {
        Some(error) if !present => conditions.push(ReplicaSetCondition {
            type_: REPLICA_FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: Some(if missing { "FailedCreate" } else { "FailedDelete" }.to_owned()),
            message: Some(error.to_string()),
            last_transition_time: Timestamp::from_second(now.as_second()).ok().map(Time),
        }),
        Some(_) => {}
        None => conditions.retain(|condition| condition.type_ != REPLICA_FAILURE),
    }
    if conditions.is_empty() {
        status.conditions = None;
    }
}

/// Writes `wanted` when it differs; after a conflict once more on the newest object.
pub(super) async fn write(
    context: &Context,
    set: &ReplicaSet,
    wanted: ReplicaSetStatus,
) -> Result<(), Error> {
    if set.status.as_ref() == Some(&wanted) {
        return Ok(());
    }
    let meta = &set.metadata;
    let sets = context.namespaced::<ReplicaSet>(meta.namespace.as_deref().unwrap_or_default());
    let name = meta.name.as_deref().unwrap_or_default();
    let mut updated = set.clone();
    updated.status = Some(wanted.clone());
    match sets.replace_status(name, &PostParams::default(), &updated).await {
        Ok(_) => Ok(()),
        Err(error) if is_conflict(&error) => {
            let Some(mut newest) = sets.get_opt(name).await? else { return Ok(()) };
            if newest.metadata.uid != meta.uid {
                return Ok(());
            }
            newest.status = Some(wanted);
            sets.replace_status(name, &PostParams::default(), &newest).await?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set() -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 3},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web", "tier": "front"}}}}
        }))
        .unwrap()
    }

    fn pod(labels: serde_json::Value, ready: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"labels": labels},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}
            }))
            .unwrap(),
        )
    }

    #[test]
    fn replicas_are_counted_as_labeled_ready_and_available() {
        let active =
            [pod(json!({"app": "web", "tier": "front"}), "True"), pod(json!({"app": "web"}), "False")];
        let status = compute(&set(), &active, 1, None, Timestamp::UNIX_EPOCH);
        assert_eq!(status.replicas, 2);
        assert_eq!(status.fully_labeled_replicas, Some(1));
        assert_eq!(status.ready_replicas, Some(1));
        assert_eq!(status.available_replicas, Some(1));
        assert_eq!(status.terminating_replicas, Some(1));
        assert_eq!(status.observed_generation, Some(3));
    }

    #[test]
    fn a_failed_creation_becomes_a_condition_that_goes_when_it_is_over() {
        let error = Error::Object("quota".to_owned());
        let mut set = set();
        let failed = compute(&set, &[], 0, Some(&error), Timestamp::UNIX_EPOCH);
        let condition = failed.conditions.as_ref().unwrap().first().unwrap();
        assert_eq!(condition.reason.as_deref(), Some("FailedCreate"));
        assert_eq!(condition.message.as_deref(), Some("quota"));
        set.status = Some(failed);
        let healed = compute(&set, &[], 0, None, Timestamp::UNIX_EPOCH);
        assert_eq!(healed.conditions, None);
    }
}
