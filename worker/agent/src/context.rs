//! What the agent's parts share: handles, and the table of the node's pods.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Client;
use tokio::sync::{Notify, Semaphore, watch};

use crate::config::AgentConfig;
use crate::cri::Cri;
use crate::events::Events;
use crate::objects::Objects;
use crate::pod;
use crate::probes::Probes;
use crate::protection::Abilities;
use crate::services::Services;
use crate::status::writer::StatusWriter;

/// Handles to everything; shared by reference count.
pub struct Context {
    pub config: AgentConfig,
    pub client: Client,
    pub cri: Cri,
    /// `containerd`, `ephor`, ...: the scheme of container ids.
    pub runtime_name: String,
    pub runtime_version: String,
    pub events: Events,
    pub statuses: StatusWriter,
    pub probes: Probes,
    pub objects: Arc<Objects>,
    pub services: Services,
    pub pods: Pods,
    /// The Node object as the API server has it.
    pub node: watch::Receiver<Option<Arc<Node>>>,
    pub node_ips: Vec<String>,
    pub capacity: BTreeMap<String, Quantity>,
    pub allocatable: BTreeMap<String, Quantity>,
    /// Bytes of memory of the node.
    pub node_memory: i64,
    /// What this node can do for the protection of pods.
    pub abilities: Abilities,
    /// Bounds concurrent image pulls.
    pub pulls: Semaphore,
}

/// One pod of the table.
#[derive(Clone)]
pub struct PodEntry {
    /// The newest object.
    pub pod: Arc<Pod>,
    /// Wakes its worker.
    pub wake: Arc<Notify>,
    /// Holds resources of the node: admitted and not over.
    pub active: bool,
}

/// The pods of this node by UID. Clones share the table.
#[derive(Clone, Default)]
pub struct Pods {
    table: Arc<Mutex<BTreeMap<String, PodEntry>>>,
}

impl Pods {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, PodEntry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a pod or replaces its object; returns what wakes its worker.
    pub fn upsert(&self, pod: &Arc<Pod>) -> Arc<Notify> {
        let mut table = self.lock();
        let entry = table.entry(pod::uid(pod).to_owned()).or_insert_with(|| PodEntry {
            pod: pod.clone(),
            wake: Arc::new(Notify::new()),
            active: false,
        });
        entry.pod = pod.clone();
        entry.wake.clone()
    }

    /// Says whether the pod holds resources.
    pub fn set_active(&self, uid: &str, active: bool) {
        if let Some(entry) = self.lock().get_mut(uid) {
            entry.active = active;
        }
    }

    /// Forgets a pod.
    pub fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Whether the pod is known.
    pub fn contains(&self, uid: &str) -> bool {
        self.lock().contains_key(uid)
    }

    /// Wakes a pod's worker, if it has one.
    pub fn wake(&self, uid: &str) {
        if let Some(entry) = self.lock().get(uid) {
            entry.wake.notify_one();
        }
    }

    /// Everything, for lists.
    pub fn all(&self) -> Vec<PodEntry> {
        self.lock().values().cloned().collect()
    }

    /// A pod by name; the newest where an old one of the same name still ends.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let table = self.lock();
        let mut same =
            table.values().filter(|e| pod::namespace(&e.pod) == namespace && pod::name(&e.pod) == name);
        let first = same.next()?;
        let newest = same.fold(first, |a, b| {
            if a.pod.metadata.creation_timestamp < b.pod.metadata.creation_timestamp { b } else { a }
        });
        Some(newest.pod.clone())
    }
}
