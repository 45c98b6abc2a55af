//! Assigns every node its part of the pods' address range, never the same to two. Keys are nodes. A single
//! worker, so that each choice takes all earlier ones into account; `spec.podCIDR` cannot be changed once
//! it is set, and is free again when the node is deleted. `allocator.rs` knows what is taken.

mod allocator;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use master_client::{EventType, HandlerGuard, ObjectKey, Recorder, WorkQueue, reference};
use serde_json::json;

use crate::context::Context;
use crate::controller::{Controller, Reconciled};
use crate::error::{Error, ignore_not_found};
use allocator::Allocator;

pub(crate) struct PodCidrController {
    context: Context,
    recorder: Recorder,
    /// Parts of all nodes: those that the cache shows, and those that this leader has assigned and the cache
    /// may not show yet.
    allocator: Mutex<Allocator>,
}

impl PodCidrController {
    pub fn new(context: Context) -> Self {
        let recorder = context.recorder("cidrAllocator");
        let allocator = Allocator::new(context.config.cluster_cidr, context.config.node_cidr_prefix);
        Self { context, recorder, allocator: Mutex::new(allocator) }
    }

    fn allocator(&self) -> MutexGuard<'_, Allocator> {
        self.allocator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cidrs(node: &Node) -> Vec<Ipv4Net> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidr.iter().chain(spec.pod_cidrs.iter().flatten());
    all.filter_map(|cidr| cidr.parse().ok()).collect()
}

#[async_trait]
impl Controller for PodCidrController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "node-ipam"
    }

    fn register(self: Arc<Self>, queue: &Arc<WorkQueue<ObjectKey>>) -> Vec<HandlerGuard> {
        let (this, queue) = (self.clone(), queue.clone());
        vec![self.context.informers.nodes.add_handler(move |delta| {
            let Some(node) = delta.object() else { return };
            let key = ObjectKey::of(&**node);
            if delta.new.is_none() {
                this.allocator().release(&key.name);
                return;
            }
            let own = cidrs(node);
            if !own.is_empty() {
                this.allocator().set(&key.name, own);
            }
            queue.add(key);
        })]
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Reconciled, Error> {
        let Some(node) = self.context.informers.nodes.cache().get(key) else { return Ok(Reconciled::Done) };
        if !cidrs(&node).is_empty() {
            return Ok(Reconciled::Done);
        }
        let cidr = self.allocator().assign(&key.name);
        let Some(cidr) = cidr else {
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.recorder.event(reference(&*node), EventType::Normal, "CIDRNotAvailable", message);
            return Err(Error::Object("no pod addresses are left for another node".to_owned()));
        };
        let patch = json!({
            "metadata": { "uid": node.metadata.uid },
            "spec": { "podCIDR": cidr.to_string(), "podCIDRs": [cidr.to_string()] }
        });
        let nodes = self.context.all::<Node>();
        let patched = nodes.patch(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        if ignore_not_found(patched)?.is_none() {
            self.allocator().release(&key.name);
        }
        Ok(Reconciled::Done)
    }
}
