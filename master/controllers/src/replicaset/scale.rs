//! Creates and deletes pods until a ReplicaSet has as many as it wants. Called by `replicaset.rs` with the
//! active pods it controls; writes pods through the API.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use master_client::{EventType, Informers, ObjectKey, reference};

use super::ReplicaSetController;
use crate::error::{Error, describe, is_namespace_terminating, is_not_found};
use crate::owner::{controller_of, controller_reference, uid};
use crate::pod_state::{Ranked, deletion_order, is_active, node_name};

/// Maximum number of pods created or deleted by one reconcile.
const BURST: usize = 500;
/// Number of pods created first; each batch that succeeds doubles the next, so that a quota or a broken
/// template causes few failures.
const FIRST_BATCH: usize = 1;

impl ReplicaSetController {
    /// Creates missing pods or deletes superfluous ones.
    pub(super) async fn scale(
        &self,
        key: &ObjectKey,
        set: &ReplicaSet,
        active: &[Arc<Pod>],
    ) -> Result<(), Error> {
        let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let wanted = usize::try_from(wanted).unwrap_or(0);
        if active.len() < wanted {
            self.create(key, set, (wanted - active.len()).min(BURST)).await
        } else if active.len() > wanted {
            self.delete(key, set, active, (active.len() - wanted).min(BURST)).await
        } else {
            Ok(())
        }
    }

    async fn create(&self, key: &ObjectKey, set: &ReplicaSet, count: usize) -> Result<(), Error> {
        self.expectations.expect_creations(key, count);
        let pod = pod_from_template(set);
        let mut left = count;
        let mut batch = FIRST_BATCH.min(left);
        while batch > 0 {
            let results = join_all((0..batch).map(|_| self.create_one(key, set, &pod))).await;
            left -= batch;
            if let Some(error) = results.into_iter().find_map(Result::err) {
                self.expectations.creations_observed(key, left);
                return Err(error);
            }
            batch = (batch * 2).min(left);
        }
        Ok(())
    }

    async fn create_one(&self, key: &ObjectKey, set: &ReplicaSet, pod: &Pod) -> Result<(), Error> {
        let pods = self.context.namespaced::<Pod>(&key.namespace);
        match pods.create(&PostParams::default(), pod).await {
            Ok(created) => {
                let name = created.metadata.name.unwrap_or_default();
                let message = format!("Created pod: {name}");
                self.recorder.event(reference(set), EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) if is_namespace_terminating(&error) => Ok(()),
            Err(error) => {
                self.expectations.creations_observed(key, 1);
                let message = format!("Error creating: {}", describe(&error));
                self.recorder.event(reference(set), EventType::Warning, "FailedCreate", message);
                Err(error.into())
            }
        }
    }

    async fn delete(
        &self,
        key: &ObjectKey,
        set: &ReplicaSet,
        active: &[Arc<Pod>],
        count: usize,
    ) -> Result<(), Error> {
        let victims = self.choose_victims(set, active, count);
        let keys: BTreeSet<_> = victims.iter().map(|pod| ObjectKey::of(&**pod)).collect();
        self.expectations.expect_deletions(key, keys);
        let results = join_all(victims.iter().map(|pod| self.delete_one(key, set, pod))).await;
        results.into_iter().collect()
    }

    async fn delete_one(&self, key: &ObjectKey, set: &ReplicaSet, pod: &Pod) -> Result<(), Error> {
        let pods = self.context.namespaced::<Pod>(&key.namespace);
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match pods.delete(name, &DeleteParams::default()).await {
            Ok(_) => {
                let message = format!("Deleted pod: {name}");
                self.recorder.event(reference(set), EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Err(error) => {
                self.expectations.deletion_observed(key, &ObjectKey::of(pod));
                if is_not_found(&error) {
                    return Ok(());
                }
                let message = format!("Error deleting: {}", describe(&error));
                self.recorder.event(reference(set), EventType::Warning, "FailedDelete", message);
                Err(error.into())
            }
        }
    }

    fn choose_victims(&self, set: &ReplicaSet, active: &[Arc<Pod>], count: usize) -> Vec<Arc<Pod>> {
        if count >= active.len() {
            return active.to_vec();
        }
        let per_node = self.relatives_per_node(set, active);
        let mut ranked: Vec<Ranked> = active
            .iter()
            .map(|pod| {
                let rank = node_name(pod).and_then(|node| per_node.get(node)).copied().unwrap_or(0);
                Ranked { pod: pod.clone(), rank }
            })
            .collect();
        let now = self.context.now();
        ranked.sort_by(|left, right| deletion_order(left, right, now));
        ranked.into_iter().take(count).map(|ranked| ranked.pod).collect()
    }

    /// Counts the active pods on each node of all ReplicaSets that have the same controller as this one.
    fn relatives_per_node(&self, set: &ReplicaSet, active: &[Arc<Pod>]) -> BTreeMap<String, usize> {
        let mut per_node = BTreeMap::new();
        let mut count = |pod: &Pod| {
            if let Some(node) = node_name(pod).filter(|_| is_active(pod)) {
                *per_node.entry(node.to_owned()).or_insert(0) += 1;
            }
        };
        let Some(owner) = controller_of(&set.metadata) else {
            active.iter().for_each(|pod| count(pod));
            return per_node;
        };
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let value = Informers::controlled_by(namespace, &owner.uid);
        let relatives =
            self.context.informers.replica_sets.cache().by_index(Informers::BY_CONTROLLER, &value);
        for relative in relatives {
            let pods = self.context.informers.pods.cache();
            let value = Informers::controlled_by(namespace, uid(&relative.metadata));
            for pod in pods.by_index(Informers::BY_CONTROLLER, &value) {
                count(&pod);
            }
        }
        per_node
    }
}

/// Builds a pod from the template, owned by the set; the server chooses the end of its name.
fn pod_from_template(set: &ReplicaSet) -> Pod {
    let template: PodTemplateSpec =
        set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.metadata.name.as_deref().unwrap_or_default())),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}
