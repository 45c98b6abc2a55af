//! State shared by the agent's parts: handles, and the table of the node's pods.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Client;
use tokio::sync::{Notify, Semaphore, watch};

use crate::config::AgentConfig;
use crate::cri::Cri;
use crate::events::Events;
use crate::object_cache::ObjectCache;
use crate::pod;
use crate::probes::Probes;
use crate::protection::Abilities;
use crate::services::Services;
use crate::status::writer::StatusWriter;

/// Handles and node data that all parts of the agent share.
pub struct Context {
    pub config: AgentConfig,
    pub client: Client,
    pub cri: Cri,
    /// Name of the runtime (`containerd`, `ephor`, ...), the scheme in container ids.
    pub runtime_name: String,
    pub runtime_version: String,
    pub events: Events,
    pub statuses: StatusWriter,
    pub probes: Probes,
    pub objects: Arc<ObjectCache>,
    pub services: Services,
    pub pods: Pods,
    /// The Node object from the API server; `None` if it has not been read or does not exist.
    pub node: watch::Receiver<Option<Arc<Node>>>,
    pub node_ips: Vec<String>,
    pub capacity: BTreeMap<String, Quantity>,
    pub allocatable: BTreeMap<String, Quantity>,
    /// Memory of the node in bytes.
    pub node_memory: i64,
    /// Protections that this node can enforce for pods.
    pub abilities: Abilities,
    /// Permits that limit concurrent image pulls.
    pub pulls: Semaphore,
}

/// Entry of the table of pods.
#[derive(Clone)]
pub struct PodEntry {
    /// Newest version of the pod object.
    pub pod: Arc<Pod>,
    /// Wakes the pod's worker.
    pub wake: Arc<Notify>,
    /// Whether the pod holds resources of the node: it is admitted and not over.
    pub active: bool,
}

/// Pods of this node by UID. Clones share the table.
#[derive(Clone, Default)]
pub struct Pods {
    table: Arc<Mutex<BTreeMap<String, PodEntry>>>,
    /// UIDs of pods that exist, but whose objects do not decode: they are no orphans.
    unreadable: Arc<Mutex<BTreeSet<String>>>,
}

impl Pods {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, PodEntry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a pod or replaces its object; returns the handle that wakes its worker.
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

    /// Sets whether the pod holds resources of the node.
    pub fn set_active(&self, uid: &str, active: bool) {
        if let Some(entry) = self.lock().get_mut(uid) {
            entry.active = active;
        }
    }

    /// Removes a pod from the table.
    pub fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Sets the UIDs of all pods that exist, but whose objects do not decode.
    pub fn set_unreadable(&self, uids: BTreeSet<String>) {
        *self.unreadable.lock().unwrap_or_else(PoisonError::into_inner) = uids;
    }

    /// Returns whether the pod exists: it is in the table, or its object does not decode.
    pub fn contains(&self, uid: &str) -> bool {
        self.lock().contains_key(uid)
            || self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).contains(uid)
    }

    /// Wakes a pod's worker; does nothing if the pod is unknown.
    pub fn wake(&self, uid: &str) {
        if let Some(entry) = self.lock().get(uid) {
            entry.wake.notify_one();
        }
    }

    /// Returns all entries of the table.
    pub fn all(&self) -> Vec<PodEntry> {
        self.lock().values().cloned().collect()
    }

    /// Finds a pod by name: the newest if an older one of the same name is still ending.
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
