//! Deletes pods that no agent will delete: those of nodes that are gone or out of service, those deleted
//! before they had a node, and the oldest ended pods when there are very many. Has a single key, reconciled
//! when a node or such a pod changes and every 20 s, as kube-controller-manager does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use master_client::{HandlerGuard, ObjectKey, WorkQueue};
use serde_json::json;
use tokio::time::Instant;

use crate::context::Context;
use crate::controller::{Controller, Reconciled};
use crate::error::{Error, ignore_not_found, is_conflict};
use crate::node_taints::{OUT_OF_SERVICE, has_taint, is_ready};
use crate::pod_state::{is_terminal, node_name};

/// Interval between two sweeps.
const PERIOD: Duration = Duration::from_secs(20);
/// Time a node must be missing before its pods are deleted: it may be registering again.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Number of ended pods to keep.
const TERMINATED_KEPT: usize = 12_500;

/// The only key of this controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sweep;

impl fmt::Display for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sweep")
    }
}

pub(crate) struct PodGcController {
    context: Context,
    /// When each node that pods name, but that does not exist, was first missing.
    missing: Mutex<BTreeMap<String, Instant>>,
}

impl PodGcController {
    pub fn new(context: Context) -> Self {
        Self { context, missing: Mutex::default() }
    }

    /// Returns the names of the nodes that have been missing for [`QUARANTINE`].
    fn gone_nodes(&self, pods: &[Arc<Pod>], nodes: &BTreeMap<String, Arc<Node>>) -> Vec<String> {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let named: BTreeSet<&str> = pods.iter().filter_map(|pod| node_name(pod)).collect();
        missing.retain(|name, _| !nodes.contains_key(name) && named.contains(name.as_str()));
        for name in named {
            if !nodes.contains_key(name) {
                missing.entry(name.to_owned()).or_insert_with(Instant::now);
            }
        }
        let long = missing.iter().filter(|(_, since)| since.elapsed() >= QUARANTINE);
        long.map(|(name, _)| name.clone()).collect()
    }

    /// Deletes a pod without grace; with `why`, marks it as failed first if it has not ended.
    async fn remove(&self, pod: &Pod, why: Option<&str>) -> Result<(), Error> {
        let key = ObjectKey::of(pod);
        let pods = self.context.namespaced::<Pod>(&key.namespace);
        tracing::info!(pod = %key, reason = why, "removing a pod that no agent will delete");
        if let Some(message) = why.filter(|_| !is_terminal(pod)) {
            let patch = json!({
                "metadata": { "uid": pod.metadata.uid },
                "status": {
                    "phase": "Failed",
                    "conditions": [{
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": "DeletionByPodGC",
                        "message": message,
                        "lastTransitionTime": self.context.time(),
                        "observedGeneration": pod.metadata.generation,
                    }]
                }
            });
            let patch = Patch::Strategic(patch);
            ignore_not_found(pods.patch_status(&key.name, &PatchParams::default(), &patch).await)?;
        }
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams::default().grace_period(0).preconditions(preconditions);
        match ignore_not_found(pods.delete(&key.name, &params).await) {
            // Another pod has taken the name.
            Err(error) if is_conflict(&error) => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }
}

/// Returns the oldest ended pods beyond the number to keep.
fn excess_terminated(pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    let mut ended: Vec<_> = pods.iter().filter(|pod| is_terminal(pod)).cloned().collect();
    let excess = ended.len().saturating_sub(TERMINATED_KEPT);
    ended.sort_by(|left, right| {
        let age = |pod: &Pod| (pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone());
        age(left).cmp(&age(right))
    });
    ended.truncate(excess);
    ended
}

#[async_trait]
impl Controller for PodGcController {
    type Key = Sweep;

    fn name(&self) -> &'static str {
        "pod-gc"
    }

    fn register(self: Arc<Self>, queue: &Arc<WorkQueue<Sweep>>) -> Vec<HandlerGuard> {
        queue.add(Sweep);
        let nodes = {
            let queue = queue.clone();
            self.context.informers.nodes.add_handler(move |delta| {
                let relevant = delta.new.is_none_or(|node| has_taint(node, OUT_OF_SERVICE));
                if relevant {
                    queue.add(Sweep);
                }
            })
        };
        let pods = {
            let queue = queue.clone();
            self.context.informers.pods.add_handler(move |delta| {
                let unscheduled = delta
                    .new
                    .is_some_and(|pod| pod.metadata.deletion_timestamp.is_some() && node_name(pod).is_none());
                if unscheduled {
                    queue.add(Sweep);
                }
            })
        };
        vec![nodes, pods]
    }

    async fn reconcile(&self, _: &Sweep) -> Result<Reconciled, Error> {
        let informers = &self.context.informers;
        let pods = informers.pods.cache().list();
        let nodes: BTreeMap<String, Arc<Node>> = informers
            .nodes
            .cache()
            .list()
            .into_iter()
            .map(|node| (node.metadata.name.clone().unwrap_or_default(), node))
            .collect();
        for pod in excess_terminated(&pods) {
            self.remove(&pod, None).await?;
        }
        let mut gone = BTreeSet::new();
        for name in self.gone_nodes(&pods, &nodes) {
            // The cache may lag behind, so the node is read live: pods of an existing node are kept.
            if self.context.all::<Node>().get_opt(&name).await?.is_none() {
                gone.insert(name);
            }
        }
        for pod in &pods {
            let terminating = pod.metadata.deletion_timestamp.is_some();
            match node_name(pod) {
                None if terminating => self.remove(pod, None).await?,
                Some(name) if gone.contains(name) => {
                    self.remove(pod, Some("PodGC: node no longer exists")).await?;
                }
                Some(name) if terminating => {
                    let lost = nodes
                        .get(name)
                        .is_some_and(|node| !is_ready(node) && has_taint(node, OUT_OF_SERVICE));
                    if lost {
                        self.remove(pod, Some("PodGC: node is out of service")).await?;
                    }
                }
                _ => {}
            }
        }
        Ok(Reconciled::After(PERIOD))
    }
}
