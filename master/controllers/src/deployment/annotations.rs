//! The annotations that a Deployment keeps on its ReplicaSets and itself: revision, revision history, sizes.
//! kubectl's `rollout history` and `rollout undo` read them. Called by `replica_sets.rs` and `arithmetic.rs`.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::arithmetic::{maximum, replicas};

/// Number of templates the Deployment has had; on a ReplicaSet the number of its own template.
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";
/// Maximum length of the revision history, in characters.
const HISTORY_MAX: usize = 2000;

fn number<N: std::str::FromStr>(meta: &ObjectMeta, key: &str) -> Option<N> {
    meta.annotations.as_ref()?.get(key)?.parse().ok()
}

/// Returns the revision of a ReplicaSet, 0 when it has none.
pub(crate) fn revision(set: &ReplicaSet) -> i64 {
    number(&set.metadata, REVISION).unwrap_or(0)
}

/// Returns the Deployment's `spec.replicas` when it last scaled this set.
pub(crate) fn desired_replicas(set: &ReplicaSet) -> Option<i32> {
    number(&set.metadata, DESIRED_REPLICAS)
}

/// Returns the Deployment's replicas plus surge when it last scaled this set.
pub(crate) fn max_replicas(set: &ReplicaSet) -> Option<i32> {
    number(&set.metadata, MAX_REPLICAS)
}

fn put(annotations: &mut BTreeMap<String, String>, key: &str, value: String) -> bool {
    if annotations.get(key) == Some(&value) {
        return false;
    }
    annotations.insert(key.to_owned(), value);
    true
}

/// Records the Deployment's size on a set; true when an annotation changed.
pub(crate) fn set_sizes(set: &mut ReplicaSet, deployment: &Deployment) -> bool {
    let wanted = replicas(deployment);
    let annotations = set.metadata.annotations.get_or_insert_default();
    let desired = put(annotations, DESIRED_REPLICAS, wanted.to_string());
    let max = put(annotations, MAX_REPLICAS, maximum(deployment).to_string());
    desired || max
}

/// Copies the Deployment's annotations to its current set and gives the set `revision`; true when an
/// annotation changed. A set that becomes current again keeps its former revisions in its history.
pub(crate) fn set_current(
    set: &mut ReplicaSet,
    deployment: &Deployment,
    revision: i64,
    exists: bool,
) -> bool {
    let mut changed = false;
    let own = [LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED_REPLICAS, MAX_REPLICAS, ROLLBACK_TO];
    let annotations = set.metadata.annotations.get_or_insert_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !own.contains(&key.as_str()) {
            changed |= put(annotations, key, value.clone());
        }
    }
    let old = annotations.get(REVISION).cloned();
    let old_number = old.as_ref().map_or(Ok(0), |old| old.parse::<i64>());
    match old_number {
        Err(_) => tracing::warn!(?old, "the revision of a ReplicaSet is not a number; left as it is"),
        Ok(number) if number < revision => {
            annotations.insert(REVISION.to_owned(), revision.to_string());
            if let Some(old) = old {
                let history = annotations.get(REVISION_HISTORY).cloned().unwrap_or_default();
                annotations.insert(REVISION_HISTORY.to_owned(), append_history(&history, &old));
            }
            changed = true;
        }
        Ok(_) => {}
    }
    if !exists {
        changed |= set_sizes(set, deployment);
    }
    changed
}

fn append_history(history: &str, revision: &str) -> String {
    let mut revisions: Vec<&str> = history.split(',').filter(|part| !part.is_empty()).collect();
    revisions.push(revision);
    let mut length: usize = revisions.iter().map(|part| part.len() + 1).sum();
    let mut dropped = 0;
    while dropped + 1 < revisions.len() && length > HISTORY_MAX {
        length -= revisions[dropped].len() + 1;
        dropped += 1;
    }
    revisions[dropped..].join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_history_keeps_the_newest_revisions_that_fit() {
        assert_eq!(append_history("", "1"), "1");
        assert_eq!(append_history("1,2", "3"), "1,2,3");
        // Anyone who may write the ReplicaSet may write as many revisions as annotations have room for.
        let long = append_history(&"1,".repeat(128 * 1024), "7");
        assert_eq!(long.len() + 1, HISTORY_MAX);
        assert!(long.ends_with(",1,7"));
        assert_eq!(append_history("1", &"9".repeat(HISTORY_MAX)), "9".repeat(HISTORY_MAX));
    }

    #[test]
    fn a_set_that_comes_back_gets_the_next_revision_and_remembers_the_old() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"annotations": {"note": "x", LAST_APPLIED: "{}"}},
            "spec": {"replicas": 3, "selector": {}, "template": {}}
        }))
        .unwrap();
        let mut set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"annotations": {REVISION: "1", REVISION_HISTORY: "0"}}, "spec": {"selector": {}}
        }))
        .unwrap();
        assert!(set_current(&mut set, &deployment, 3, true));
        let annotations = set.metadata.annotations.clone().unwrap();
        assert_eq!(annotations[REVISION], "3");
        assert_eq!(annotations[REVISION_HISTORY], "0,1");
        assert_eq!(annotations["note"], "x");
        assert!(!annotations.contains_key(LAST_APPLIED));
        assert!(!set_current(&mut set, &deployment, 3, true), "a second time changes nothing");
    }
}
