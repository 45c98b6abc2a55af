//! Acts on a node's conditions: sets taints, and `Ready: False` on the pods of a lost node. The conditions
//! themselves are written by the node's agent and, when it falls silent, by `master/node`. Keys are nodes;
//! `taint_eviction.rs` evicts pods according to the taints. `zones.rs` decides how many nodes may lose
//! their pods, and how fast.

mod zones;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams};
use master_client::{EventType, HandlerGuard, Informers, ObjectKey, Recorder, WorkQueue, reference};
use serde_json::json;
use std::collections::BTreeMap;
use tokio::time::Instant;

use crate::context::Context;
use crate::controller::{Controller, Reconciled};
use crate::error::{Error, ignore_not_found};
use crate::node_taints::{NoExecute, condition, has_no_execute, is_ready, wanted_taints};
use crate::pod_state;
use zones::{Permission, Zones};

pub(crate) struct NodeLifecycleController {
    context: Context,
    recorder: Recorder,
    /// Whether each node was ready when it was last reconciled.
    seen: Mutex<BTreeMap<String, bool>>,
    zones: Mutex<Zones>,
}

impl NodeLifecycleController {
    pub fn new(context: Context) -> Self {
        let recorder = context.recorder("node-controller");
        Self { context, recorder, seen: Mutex::default(), zones: Mutex::default() }
    }

    fn zones(&self) -> MutexGuard<'_, Zones> {
        self.zones.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn taint(&self, node: &Node, no_execute: NoExecute) -> Result<(), Error> {
        let Some(taints) = wanted_taints(node, no_execute, &self.context.time()) else { return Ok(()) };
        // The resourceVersion prevents overwriting taints that others set meanwhile.
        let patch = json!({
            "metadata": { "resourceVersion": node.metadata.resource_version },
            "spec": { "taints": taints }
        });
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let nodes = self.context.all::<Node>();
        ignore_not_found(nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
        Ok(())
    }

    /// Sets Ready to False on pods that were ready before their node was lost. Done once for each loss: an
    /// agent that still runs may report otherwise afterwards.
    async fn mark_pods(&self, node: &Node) -> Result<(), Error> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let lost_since = condition(node, "Ready").and_then(|ready| ready.last_transition_time.clone());
        for pod in self.context.informers.pods.cache().by_index(Informers::BY_NODE, name) {
            let Some(ready) = pod_state::condition(&pod, "Ready").filter(|ready| ready.status == "True")
            else {
                continue;
            };
            if lost_since.is_some() && ready.last_transition_time > lost_since {
                continue;
            }
            let patch = json!({
                "metadata": { "uid": pod.metadata.uid },
                "status": { "conditions": [{
                    "type": "Ready", "status": "False", "lastTransitionTime": self.context.time()
                }]}
            });
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let api = self.context.namespaced::<Pod>(namespace);
            let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
            let patch = Patch::Strategic(patch);
            ignore_not_found(api.patch_status(pod_name, &PatchParams::default(), &patch).await)?;
            self.recorder.event(reference(&*pod), EventType::Warning, "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }

    fn record(&self, node: &Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let ready = is_ready(node);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.insert(name.clone(), ready);
        drop(seen);
        // The event's UID is the node's name, as in Kubernetes, so that `describe node` finds the event.
        let mut about = reference(node);
        about.uid = Some(name.clone());
        if before == Some(true) && !ready {
            let message = format!("Node {name} status is now: NodeNotReady");
            self.recorder.event(about, EventType::Normal, "NodeNotReady", message);
        } else if before.is_none() && self.is_new(node) {
            let message = format!("Node {name} event: Registered Node {name} in Controller");
            self.recorder.event(about, EventType::Normal, "RegisteredNode", message);
        }
    }

    /// Whether the node is younger than a minute: a new leader does not announce older nodes again.
    fn is_new(&self, node: &Node) -> bool {
        let created = node.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
        created.is_some_and(|created| self.context.now().as_second() - created < 60)
    }
}

#[async_trait]
impl Controller for NodeLifecycleController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "node-lifecycle"
    }

    fn workers(&self) -> usize {
        8
    }

    fn register(self: Arc<Self>, queue: &Arc<WorkQueue<ObjectKey>>) -> Vec<HandlerGuard> {
        // Records all nodes before any is reconciled; otherwise the first lost node would look like the
        // loss of all.
        for node in self.context.informers.nodes.cache().list() {
            self.zones().set(&node, is_ready(&node), Instant::now());
        }
        let (this, queue) = (self.clone(), queue.clone());
        vec![self.context.informers.nodes.add_handler(move |delta| {
            let Some(node) = delta.object() else { return };
            let key = ObjectKey::of(&**node);
            let state_changed = match delta.new {
                Some(new) => this.zones().set(new, is_ready(new), Instant::now()),
                None => this.zones().remove(&key.name, Instant::now()),
            };
            if delta.new.is_none() {
                this.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(&key.name);
                let mut about = reference(&**node);
                about.uid = Some(key.name.clone());
                let message = format!("Node {0} event: Removing Node {0} from Controller", key.name);
                this.recorder.event(about, EventType::Normal, "RemovingNode", message);
            }
            if state_changed {
                // Whether a node may lose its pods depends on how many others are lost, so all lost nodes
                // are queued.
                for other in this.context.informers.nodes.cache().list() {
                    if !is_ready(&other) {
                        queue.add(ObjectKey::of(&*other));
                    }
                }
            }
            queue.add(key);
        })]
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Reconciled, Error> {
        let Some(node) = self.context.informers.nodes.cache().get(key) else { return Ok(Reconciled::Done) };
        self.record(&node);
        if is_ready(&node) {
            self.taint(&node, NoExecute::Keep).await?;
            return Ok(Reconciled::Done);
        }
        let permission = self.zones().ask(&key.name, has_no_execute(&node), Instant::now());
        let no_execute = match permission {
            Permission::Evict => NoExecute::Add,
            Permission::Wait(_) => NoExecute::Keep,
            Permission::Withdraw => NoExecute::Remove,
        };
        self.taint(&node, no_execute).await?;
        self.mark_pods(&node).await?;
        Ok(match permission {
            Permission::Wait(Some(wait)) => Reconciled::After(wait),
            _ => Reconciled::Done,
        })
    }
}
