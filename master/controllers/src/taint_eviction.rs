//! Evicts pods from nodes with NoExecute taints they do not tolerate: at once, or when the time for which
//! they tolerate them is over. Keys are pods. Times count from when the taint was added, so that they do
//! not restart with a new leader; but a taint may come from a master whose clock was ahead, so a time in
//! the future counts from when the pod was first seen.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use master_client::{
    EventType, HandlerGuard, Informers, ObjectKey, Recorder, WorkQueue, reference, tolerates,
};
use serde_json::json;
use std::collections::BTreeMap;

use crate::context::Context;
use crate::controller::{Controller, Reconciled};
use crate::error::{Error, ignore_not_found};
use crate::node_taints::taints;
use crate::pod_state::node_name;

pub(crate) struct TaintEvictionController {
    context: Context,
    recorder: Recorder,
    scheduled: Scheduled,
}

/// Pods to be evicted later, and since when that is known; used to report when such a pod may stay after all.
#[derive(Default)]
struct Scheduled(Mutex<BTreeMap<ObjectKey, Timestamp>>);

/// When a pod has to leave its node.
#[derive(Debug, PartialEq, Eq)]
enum Eviction {
    Never,
    At(Timestamp),
}

impl Scheduled {
    /// Records that the pod is to be evicted, and returns since when that is known.
    fn add(&self, key: &ObjectKey, now: Timestamp) -> Timestamp {
        let mut scheduled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *scheduled.entry(key.clone()).or_insert(now)
    }

    fn remove(&self, key: &ObjectKey) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key).is_some()
    }

    /// Returns the start of the toleration period for a taint with this time stamp. A stamp in the future
    /// comes from a clock that is ahead, and would let pods stay longer by that much, so it counts as now.
    fn start(&self, key: &ObjectKey, stamp: Timestamp, now: Timestamp) -> Timestamp {
        if stamp > now { self.add(key, now) } else { stamp }
    }
}

impl TaintEvictionController {
    pub fn new(context: Context) -> Self {
        let recorder = context.recorder("taint-eviction-controller");
        Self { context, recorder, scheduled: Scheduled::default() }
    }

    async fn evict(&self, key: &ObjectKey, pod: &Pod) -> Result<(), Error> {
        let message = format!("Marking for deletion Pod {key}");
        self.recorder.event(reference(pod), EventType::Normal, "TaintManagerEviction", message);
        let pods = self.context.namespaced::<Pod>(&key.namespace);
        let patch = json!({
            "metadata": { "uid": pod.metadata.uid },
            "status": { "conditions": [{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": self.context.time(),
                "observedGeneration": pod.metadata.generation,
            }]}
        });
        let patch = Patch::Strategic(patch);
        ignore_not_found(pods.patch_status(&key.name, &PatchParams::default(), &patch).await)?;
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams::default().preconditions(preconditions);
        ignore_not_found(pods.delete(&key.name, &params).await)?;
        Ok(())
    }
}

/// Returns when `pod` must leave `node`: at the earliest end of its tolerations, counted in seconds from
/// `start`; at once when it does not tolerate a taint.
fn eviction(pod: &Pod, node: &Node, start: impl FnOnce(Timestamp) -> Timestamp) -> Eviction {
    let no_execute: Vec<&Taint> = taints(node).iter().filter(|taint| taint.effect == "NoExecute").collect();
    let Some(stamp) = no_execute.iter().map(|taint| since(taint, pod)).max() else { return Eviction::Never };
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut shortest: Option<i64> = None;
    for taint in no_execute {
        let used: Vec<_> = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
        if used.is_empty() {
            return Eviction::At(Timestamp::UNIX_EPOCH);
        }
        let seconds =
            used.iter().filter_map(|toleration| toleration.toleration_seconds).map(|s| s.max(0)).min();
        shortest = match (shortest, seconds) {
            (Some(left), Some(right)) => Some(left.min(right)),
            (left, right) => left.or(right),
        };
    }
    match shortest {
        None => Eviction::Never,
        Some(0) => Eviction::At(Timestamp::UNIX_EPOCH),
        Some(seconds) => {
            let end = start(stamp).as_second().saturating_add(seconds);
            Timestamp::from_second(end).map_or(Eviction::Never, Eviction::At)
        }
    }
}

/// Returns when the taint began to concern the pod: the later of the taint's and the pod's creation.
fn since(taint: &Taint, pod: &Pod) -> Timestamp {
    let added = taint.time_added.as_ref().map(|time| time.0);
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    added.max(created).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A pod's key, as this controller's log lines show it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PodKey(ObjectKey);

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
impl Controller for TaintEvictionController {
    type Key = PodKey;

    fn name(&self) -> &'static str {
        "taint-eviction"
    }

    fn workers(&self) -> usize {
        8
    }

    fn register(self: Arc<Self>, queue: &Arc<WorkQueue<PodKey>>) -> Vec<HandlerGuard> {
        let informers = self.context.informers.clone();
        let nodes = {
            let (informers, queue) = (informers.clone(), queue.clone());
            informers.clone().nodes.add_handler(move |delta| {
                let tainted = |node: &Arc<Node>| {
                    let taints = taints(node).iter();
                    taints.filter(|taint| taint.effect == "NoExecute").cloned().collect::<Vec<_>>()
                };
                let before = delta.old.map(tainted).unwrap_or_default();
                let after = delta.new.map(tainted).unwrap_or_default();
                let Some(node) = delta.new.filter(|_| before != after) else { return };
                let name = node.metadata.name.as_deref().unwrap_or_default();
                for pod in informers.pods.cache().by_index(Informers::BY_NODE, name) {
                    queue.add(PodKey(ObjectKey::of(&*pod)));
                }
            })
        };
        let pods = {
            let (this, queue) = (self.clone(), queue.clone());
            informers.clone().pods.add_handler(move |delta| {
                let Some(pod) = delta.object() else { return };
                let key = ObjectKey::of(&**pod);
                let Some(new) = delta.new else {
                    this.scheduled.remove(&key);
                    return;
                };
                let bound = delta.old.is_none_or(|old| {
                    node_name(old) != node_name(new)
                        || old.spec.as_ref().map(|spec| &spec.tolerations)
                            != new.spec.as_ref().map(|spec| &spec.tolerations)
                });
                let node = node_name(new).filter(|_| bound);
                let node = node.and_then(|name| informers.nodes.cache().find("", name));
                if node.is_some_and(|node| taints(&node).iter().any(|taint| taint.effect == "NoExecute")) {
                    queue.add(PodKey(key));
                }
            })
        };
        vec![nodes, pods]
    }

    async fn reconcile(&self, PodKey(key): &PodKey) -> Result<Reconciled, Error> {
        let informers = &self.context.informers;
        let Some(pod) = informers.pods.cache().get(key) else { return Ok(Reconciled::Done) };
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(Reconciled::Done);
        }
        let node = node_name(&pod).and_then(|name| informers.nodes.cache().find("", name));
        let Some(node) = node else { return Ok(Reconciled::Done) };
        let now = self.context.now();
        match eviction(&pod, &node, |stamp| self.scheduled.start(key, stamp, now)) {
            Eviction::Never => {
                if self.scheduled.remove(key) {
                    let message = format!("Cancelling deletion of Pod {key}");
                    self.recorder.event(reference(&*pod), EventType::Normal, "TaintManagerEviction", message);
                }
                Ok(Reconciled::Done)
            }
            Eviction::At(time) => {
                let left = time.as_millisecond() - now.as_millisecond();
                match u64::try_from(left) {
                    Ok(left) if left > 0 => {
                        self.scheduled.add(key, now);
                        Ok(Reconciled::After(Duration::from_millis(left)))
                    }
                    _ => {
                        self.evict(key, &pod).await?;
                        self.scheduled.remove(key);
                        Ok(Reconciled::Done)
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(taints: Value) -> Node {
        serde_json::from_value(json!({"spec": {"taints": taints}})).unwrap()
    }

    fn pod(tolerations: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"creationTimestamp": "1970-01-01T00:00:50Z"},
            "spec": {"containers": [], "tolerations": tolerations}
        }))
        .unwrap()
    }

    fn unreachable() -> Value {
        json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute",
            "timeAdded": "1970-01-01T00:01:40Z"}])
    }

    #[test]
    fn a_pod_leaves_when_its_tolerated_time_is_over() {
        let five = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists",
            "effect": "NoExecute", "tolerationSeconds": 5}]);
        let at = Timestamp::from_second(105).unwrap();
        assert_eq!(eviction(&pod(five), &node(unreachable()), |stamp| stamp), Eviction::At(at));
    }

    #[test]
    fn a_taint_of_a_clock_that_is_ahead_counts_from_when_it_was_seen() {
        let five = pod(json!([{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]));
        let (scheduled, key) = (Scheduled::default(), ObjectKey { namespace: "a".into(), name: "b".into() });
        let second = |second| Timestamp::from_second(second).unwrap();
        // The other master's clock is ahead: it stamped the taint with 100.
        for (now, leaves) in [(60, 65), (63, 65), (65, 65), (99, 65), (101, 105)] {
            let start = |stamp| scheduled.start(&key, stamp, second(now));
            let expected = Eviction::At(second(leaves));
            assert_eq!(eviction(&five, &node(unreachable()), start), expected, "at {now}");
        }
        // Once it is over, the next time counts anew.
        assert!(scheduled.remove(&key));
        let start = |stamp| scheduled.start(&key, stamp, second(80));
        assert_eq!(eviction(&five, &node(unreachable()), start), Eviction::At(second(85)));
    }

    #[test]
    fn a_pod_that_does_not_tolerate_leaves_at_once_and_one_that_does_stays() {
        let at_once = Eviction::At(Timestamp::UNIX_EPOCH);
        assert_eq!(eviction(&pod(json!([])), &node(unreachable()), |stamp| stamp), at_once);
        assert_eq!(
            eviction(&pod(json!([{"operator": "Exists"}])), &node(unreachable()), |stamp| stamp),
            Eviction::Never
        );
        let other = node(json!([{"key": "x", "effect": "NoSchedule"}]));
        assert_eq!(eviction(&pod(json!([])), &other, |stamp| stamp), Eviction::Never);
    }
}
