//! The state that the scheduler decides on: every node with its pods and the resources they request,
//! including pods just placed that the API does not show yet (assumed). Written by the handlers in `lib.rs`
//! and by `cycle.rs`; read by the plugins while it is locked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Affinity, Namespace, Node, Pod};
use master_client::ObjectKey;
use proto_api::quantity::Quantity;

use crate::resources::{Resources, request, scoring_request};

/// Labels of objects without labels; shared, so that nothing is copied at every attempt.
static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

/// A host port: address, protocol, port number.
pub(crate) type HostPort = (String, String, i32);

/// A pod with values that are computed from it once.
#[derive(Debug)]
pub(crate) struct PodInfo {
    pub pod: Arc<Pod>,
    pub key: ObjectKey,
    pub request: Resources,
    pub scoring_request: Resources,
    pub host_ports: Vec<HostPort>,
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        let spec = pod.spec.as_ref();
        Self {
            key: ObjectKey::of(&*pod),
            request: spec.map(request).unwrap_or_default(),
            scoring_request: spec.map(scoring_request).unwrap_or_default(),
            host_ports: host_ports(&pod),
            pod,
        }
    }

    pub fn namespace(&self) -> &str {
        &self.key.namespace
    }

    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub fn labels(&self) -> &BTreeMap<String, String> {
        self.pod.metadata.labels.as_ref().unwrap_or(&NO_LABELS)
    }

    pub fn affinity(&self) -> Option<&Affinity> {
        self.pod.spec.as_ref()?.affinity.as_ref()
    }

    pub fn is_terminating(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    fn has_pod_anti_affinity(&self) -> bool {
        let terms = self.affinity().and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        terms
            .and_then(|terms| terms.required_during_scheduling_ignored_during_execution.as_ref())
            .is_some_and(|terms| !terms.is_empty())
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let ip = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
            Some((ip, port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), number))
        })
        .collect()
}

/// A node and its pods.
#[derive(Debug, Default)]
pub(crate) struct NodeInfo {
    pub name: String,
    /// The Node object; `None` while it is missing but pods are known to be on the node.
    pub node: Option<Arc<Node>>,
    pub labels: BTreeMap<String, String>,
    pub allocatable: Resources,
    pub allowed_pods: i64,
    pub pods: BTreeMap<ObjectKey, Arc<PodInfo>>,
    pub requested: Resources,
    pub scoring_requested: Resources,
    /// Keys of those `pods` whose anti-affinity may keep other pods away.
    pub with_anti_affinity: BTreeSet<ObjectKey>,
}

impl NodeInfo {
    fn set_node(&mut self, node: Arc<Node>) {
        self.labels = node.metadata.labels.clone().unwrap_or_default();
        let status = node.status.as_ref();
        let list = status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
        self.allocatable = list.map(Resources::of).unwrap_or_default();
        let pods = list.and_then(|list| list.get("pods"));
        self.allowed_pods =
            pods.and_then(|pods| Quantity::parse(&pods.0).ok()).map_or(0, |pods| pods.value());
        self.node = Some(node);
    }

    fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.request);
        self.scoring_requested.add(&pod.scoring_request);
        if pod.has_pod_anti_affinity() {
            self.with_anti_affinity.insert(pod.key.clone());
        }
        self.pods.insert(pod.key.clone(), pod);
    }

    fn remove(&mut self, key: &ObjectKey) {
        let Some(pod) = self.pods.remove(key) else { return };
        self.with_anti_affinity.remove(key);
        if !(self.requested.is_saturated() || self.scoring_requested.is_saturated()) {
            self.requested.subtract(&pod.request);
            self.scoring_requested.subtract(&pod.scoring_request);
            return;
        }
        // A sum that has reached the largest number has lost what was added to it.
        self.requested = Resources::default();
        self.scoring_requested = Resources::default();
        for pod in self.pods.values() {
            self.requested.add(&pod.request);
            self.scoring_requested.add(&pod.scoring_request);
        }
    }

    fn is_unused(&self) -> bool {
        self.node.is_none() && self.pods.is_empty()
    }
}

/// All nodes and placed pods.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    nodes: BTreeMap<String, NodeInfo>,
    /// Name of the node of each placed pod.
    placed: BTreeMap<ObjectKey, String>,
    /// Pods placed by this scheduler that the API has not confirmed yet: key to UID.
    assumed: BTreeMap<ObjectKey, String>,
    /// Labels of namespaces, for affinity terms that select namespaces.
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

impl Snapshot {
    /// Returns the existing nodes, in name order.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.values().filter(|info| info.node.is_some())
    }

    #[cfg(test)]
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(name).filter(|info| info.node.is_some())
    }

    pub fn namespace_labels(&self, name: &str) -> &BTreeMap<String, String> {
        self.namespaces.get(name).unwrap_or(&NO_LABELS)
    }

    pub fn set_namespace(&mut self, namespace: &Namespace) {
        let name = namespace.metadata.name.clone().unwrap_or_default();
        self.namespaces.insert(name, namespace.metadata.labels.clone().unwrap_or_default());
    }

    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let info = self.nodes.entry(name.clone()).or_default();
        info.name = name;
        info.set_node(node);
    }

    pub fn remove_node(&mut self, name: &str) {
        if let Some(info) = self.nodes.get_mut(name) {
            info.node = None;
            if info.is_unused() {
                self.nodes.remove(name);
            }
        }
    }

    /// Places a pod on the node that the API says; ends an assumption about the pod.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.assumed.remove(&pod.key);
        self.put(pod, node);
    }

    /// Assumes a pod on a node to which this scheduler is about to bind it.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.assumed.insert(pod.key.clone(), pod.uid().to_owned());
        self.put(pod, node);
    }

    /// Removes a pod whose binding failed, unless the API has confirmed it meanwhile. Another pod that has
    /// taken its name keeps its own place.
    pub fn forget(&mut self, pod: &PodInfo) {
        if self.assumed.get(&pod.key).is_some_and(|uid| uid == pod.uid()) {
            self.remove(&pod.key);
        }
    }

    /// Whether a pod of this name is being bound or known to be placed.
    pub fn is_placed(&self, key: &ObjectKey) -> bool {
        self.placed.contains_key(key)
    }

    fn put(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.take_off(&pod.key);
        self.placed.insert(pod.key.clone(), node.to_owned());
        let info = self.nodes.entry(node.to_owned()).or_default();
        node.clone_into(&mut info.name);
        info.add(pod);
    }

    /// Removes a pod that is gone, or has ended and uses no resources any more.
    pub fn remove(&mut self, key: &ObjectKey) {
        self.assumed.remove(key);
        self.take_off(key);
    }

    fn take_off(&mut self, key: &ObjectKey) {
        let Some(node) = self.placed.remove(key) else { return };
        if let Some(info) = self.nodes.get_mut(&node) {
            info.remove(key);
            if info.is_unused() {
                self.nodes.remove(&node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod};
    use serde_json::json;

    #[test]
    fn an_assumed_pod_takes_room_until_it_is_forgotten() {
        let mut snapshot = Snapshot::default();
        snapshot.set_node(node("a", json!({"cpu": "1"}), json!({})));
        let info = pod("p", json!({"cpu": "400m"}), json!({}));
        snapshot.assume(info.clone(), "a");
        assert_eq!(snapshot.node("a").unwrap().requested.cpu_milli, 400);
        snapshot.forget(&info);
        assert_eq!(snapshot.node("a").unwrap().requested.cpu_milli, 0);
    }

    #[test]
    fn a_confirmed_pod_is_not_forgotten_and_counts_once() {
        let mut snapshot = Snapshot::default();
        snapshot.set_node(node("a", json!({"cpu": "1"}), json!({})));
        snapshot.set_node(node("b", json!({"cpu": "1"}), json!({})));
        let info = pod("p", json!({"cpu": "400m"}), json!({}));
        snapshot.assume(info.clone(), "a");
        snapshot.place(info.clone(), "b");
        snapshot.forget(&info);
        assert_eq!(snapshot.node("a").unwrap().requested.cpu_milli, 0);
        assert_eq!(snapshot.node("b").unwrap().requested.cpu_milli, 400);
        snapshot.remove(&info.key);
        assert_eq!(snapshot.node("b").unwrap().requested.cpu_milli, 0);
    }

    #[test]
    fn a_failed_binding_takes_no_place_from_a_new_pod_of_the_same_name() {
        let mut snapshot = Snapshot::default();
        snapshot.set_node(node("a", json!({"cpu": "1"}), json!({})));
        let first = pod("p", json!({"cpu": "400m"}), json!({"metadata": {"uid": "first"}}));
        let second = pod("p", json!({"cpu": "300m"}), json!({"metadata": {"uid": "second"}}));
        snapshot.assume(first.clone(), "a");
        // It is deleted and made anew while its binding is under way.
        snapshot.remove(&first.key);
        snapshot.assume(second.clone(), "a");
        snapshot.forget(&first);
        assert_eq!(snapshot.node("a").unwrap().requested.cpu_milli, 300);
        snapshot.forget(&second);
        assert_eq!(snapshot.node("a").unwrap().requested.cpu_milli, 0);
    }

    #[test]
    fn pods_that_ask_for_more_than_can_be_counted_leave_nothing_behind() {
        let mut snapshot = Snapshot::default();
        snapshot.set_node(node("a", json!({"memory": "4Gi"}), json!({})));
        snapshot.place(pod("small", json!({"memory": "1Gi", "x/gpu": "2"}), json!({})), "a");
        // Whoever names a node in a pod needs no scheduler.
        let huge: Vec<_> = ["huge-1", "huge-2", "huge-3"]
            .map(|name| pod(name, json!({"memory": "9E", "x/gpu": "9E"}), json!({})))
            .into();
        huge.iter().for_each(|pod| snapshot.place(pod.clone(), "a"));
        assert_eq!(snapshot.node("a").unwrap().requested.memory_bytes, i64::MAX);
        huge.iter().for_each(|pod| snapshot.remove(&pod.key));
        let left = snapshot.node("a").unwrap();
        assert_eq!((left.requested.memory_bytes, left.requested.others["x/gpu"]), (1 << 30, 2));
        assert_eq!(left.scoring_requested.memory_bytes, 1 << 30);
    }

    #[test]
    fn pods_of_an_unknown_node_wait_for_it_to_appear() {
        let mut snapshot = Snapshot::default();
        snapshot.place(pod("p", json!({"cpu": "400m"}), json!({})), "late");
        assert!(snapshot.node("late").is_none());
        snapshot.set_node(node("late", json!({"cpu": "1"}), json!({})));
        assert_eq!(snapshot.node("late").unwrap().requested.cpu_milli, 400);
    }
}
