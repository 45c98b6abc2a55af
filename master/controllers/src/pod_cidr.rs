//! Assigns every node its part of the pods' address range, never the same to two. Keys are nodes. A single
//! worker, so that each choice takes all earlier ones into account; `spec.podCIDR` cannot be changed once
//! it is set, and is free again when the node is deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use master_client::{EventType, HandlerGuard, ObjectKey, Recorder, WorkQueue, reference};
use serde_json::json;

use crate::context::Context;
use crate::controller::{Controller, Reconciled};
use crate::error::{Error, ignore_not_found};

pub(crate) struct PodCidrController {
    context: Context,
    recorder: Recorder,
    /// Parts that this leader has assigned and the cache may not show yet, by node.
    given: Mutex<BTreeMap<String, Ipv4Net>>,
}

impl PodCidrController {
    pub fn new(context: Context) -> Self {
        let recorder = context.recorder("cidrAllocator");
        Self { context, recorder, given: Mutex::default() }
    }

    fn taken(&self) -> BTreeSet<Ipv4Addr> {
        let nodes = self.context.informers.nodes.cache().list();
        let cached = nodes.iter().flat_map(|node| cidrs(node)).map(|cidr| cidr.network());
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        cached.chain(given.values().map(Ipv4Net::network)).collect()
    }
}

fn cidrs(node: &Node) -> Vec<Ipv4Net> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidr.iter().chain(spec.pod_cidrs.iter().flatten());
    all.filter_map(|cidr| cidr.parse().ok()).collect()
}

/// Returns the first part of `range` that is not taken; `None` when all are.
fn first_free(range: Ipv4Net, prefix: u8, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Net> {
    range.subnets(prefix).ok()?.find(|cidr| !taken.contains(&cidr.network()))
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
            if delta.new.is_none() || !cidrs(node).is_empty() {
                // The cache shows the node's part now, or the node is gone.
                this.given.lock().unwrap_or_else(PoisonError::into_inner).remove(&key.name);
            }
            if delta.new.is_some() {
                queue.add(key);
            }
        })]
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Reconciled, Error> {
        let Some(node) = self.context.informers.nodes.cache().get(key) else { return Ok(Reconciled::Done) };
        if !cidrs(&node).is_empty() {
            return Ok(Reconciled::Done);
        }
        let before = self.given.lock().unwrap_or_else(PoisonError::into_inner).get(&key.name).copied();
        let config = &self.context.config;
        let cidr = before.or_else(|| first_free(config.cluster_cidr, config.node_cidr_prefix, &self.taken()));
        let Some(cidr) = cidr else {
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.recorder.event(reference(&*node), EventType::Normal, "CIDRNotAvailable", message);
            return Err(Error::Object("no pod addresses are left for another node".to_owned()));
        };
        self.given.lock().unwrap_or_else(PoisonError::into_inner).insert(key.name.clone(), cidr);
        let patch = json!({
            "metadata": { "uid": node.metadata.uid },
            "spec": { "podCIDR": cidr.to_string(), "podCIDRs": [cidr.to_string()] }
        });
        let nodes = self.context.all::<Node>();
        let patched = nodes.patch(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        if ignore_not_found(patched)?.is_none() {
            self.given.lock().unwrap_or_else(PoisonError::into_inner).remove(&key.name);
        }
        Ok(Reconciled::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_gets_a_share_of_its_own_until_none_is_left() {
        let range: Ipv4Net = "10.42.0.0/22".parse().unwrap();
        let mut taken = BTreeSet::new();
        let mut given = Vec::new();
        while let Some(cidr) = first_free(range, 24, &taken) {
            taken.insert(cidr.network());
            given.push(cidr.to_string());
        }
        assert_eq!(given, ["10.42.0.0/24", "10.42.1.0/24", "10.42.2.0/24", "10.42.3.0/24"]);
        taken.remove(&Ipv4Addr::new(10, 42, 1, 0));
        assert_eq!(first_free(range, 24, &taken).unwrap().to_string(), "10.42.1.0/24");
    }
}
