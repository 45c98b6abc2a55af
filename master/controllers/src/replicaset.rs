//! ReplicaSet: keeps as many pods as `spec.replicas` asks for. Keys come from ReplicaSets and from pods,
//! through their controller reference or, for orphans, through the selectors. Creates and deletes pods,
//! adopts and releases them, writes its status.

mod scale;
mod status;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::Selector;
use master_client::{Delta, HandlerGuard, Informers, ObjectKey, Recorder, WorkQueue};

use crate::context::Context;
use crate::controller::{Controller, Reconciled};
use crate::error::Error;
use crate::expectations::Expectations;
use crate::owner::{claim, controller_of, selects, uid};
use crate::pod_state::{is_active, is_terminating};

pub(crate) struct ReplicaSetController {
    context: Context,
    recorder: Recorder,
    expectations: Expectations,
}

impl ReplicaSetController {
    pub fn new(context: Context) -> Self {
        let recorder = context.recorder("replicaset-controller");
        Self { context, recorder, expectations: Expectations::default() }
    }

    fn informers(&self) -> &Informers {
        &self.context.informers
    }

    /// Returns the key of the ReplicaSet that a pod's controller reference names, if it still has the same
    /// UID.
    fn controller_key(&self, pod: &ObjectMeta) -> Option<ObjectKey> {
        let owner = controller_of(pod).filter(|owner| owner.kind == "ReplicaSet")?;
        let key = ObjectKey::new(pod.namespace.as_deref().unwrap_or_default(), owner.name.as_str());
        let set = self.informers().replica_sets.cache().get(&key)?;
        (uid(&set.metadata) == owner.uid).then_some(key)
    }

    fn on_pod(&self, delta: &Delta<'_, Pod>, queue: &WorkQueue<ObjectKey>) {
        let old_owner = delta.old.and_then(|pod| self.controller_key(&pod.metadata));
        let Some(pod) = delta.object() else { return };
        let owner = self.controller_key(&pod.metadata);
        if let Some(owner) = &owner {
            if delta.old.is_none() && pod.metadata.deletion_timestamp.is_none() {
                self.expectations.creations_observed(owner, 1);
            }
            if delta.new.is_none() || pod.metadata.deletion_timestamp.is_some() {
                self.expectations.deletion_observed(owner, &ObjectKey::of(&**pod));
            }
            queue.add(owner.clone());
        }
        if let Some(old_owner) = old_owner
            && owner.as_ref() != Some(&old_owner)
        {
            queue.add(old_owner);
        }
        let may_be_adopted = delta.new.is_some()
            && controller_of(&pod.metadata).is_none()
            && pod.metadata.deletion_timestamp.is_none()
            && delta.old.is_none_or(|old| {
                old.metadata.labels != pod.metadata.labels || controller_of(&old.metadata).is_some()
            });
        if may_be_adopted {
            for set in self.informers().replica_sets.cache().in_namespace(namespace(&pod.metadata)) {
                if selector_of(&set).is_ok_and(|selector| selects(&selector, &pod.metadata)) {
                    queue.add(ObjectKey::of(&*set));
                }
            }
        }
    }

    /// Returns the pods that `set` controls or that have no controller.
    fn candidates(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let pods = self.informers().pods.cache();
        let of = |uid: &str| {
            let value = Informers::controlled_by(namespace(&set.metadata), uid);
            pods.by_index(Informers::BY_CONTROLLER, &value)
        };
        let mut candidates = of(uid(&set.metadata));
        candidates.extend(of(""));
        candidates
    }
}

#[async_trait]
impl Controller for ReplicaSetController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "replicaset"
    }

    fn workers(&self) -> usize {
        8
    }

    fn register(self: Arc<Self>, queue: &Arc<WorkQueue<ObjectKey>>) -> Vec<HandlerGuard> {
        let sets = {
            let (this, queue) = (self.clone(), queue.clone());
            self.informers().replica_sets.add_handler(move |delta| {
                let Some(set) = delta.object() else { return };
                let key = ObjectKey::of(&**set);
                let replaced = delta.old.is_some_and(|old| old.metadata.uid != set.metadata.uid);
                if delta.new.is_none() || replaced {
                    this.expectations.forget(&key);
                }
                queue.add(key);
            })
        };
        let pods = {
            let (this, queue) = (self.clone(), queue.clone());
            self.informers().pods.add_handler(move |delta| this.on_pod(delta, &queue))
        };
        vec![sets, pods]
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Reconciled, Error> {
        let Some(set) = self.informers().replica_sets.cache().get(key) else {
            self.expectations.forget(key);
            return Ok(Reconciled::Done);
        };
        let selector = selector_of(&set)?;
        let may_scale = self.expectations.satisfied(key) && set.metadata.deletion_timestamp.is_none();
        let pods = claim(&self.context, &*set, &selector, self.candidates(&set)).await?;
        let terminating = pods.iter().filter(|pod| is_terminating(pod)).count();
        let active: Vec<_> = pods.into_iter().filter(|pod| is_active(pod)).collect();
        let scaled = if may_scale { self.scale(key, &set, &active).await } else { Ok(()) };
        let now = self.context.now();
        let wanted = status::compute(&set, &active, terminating, scaled.as_ref().err(), now);
        let written = status::write(&self.context, &set, wanted.clone()).await;
        scaled?;
        written?;
        let min_ready = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
        if min_ready > 0 && wanted.ready_replicas != wanted.available_replicas {
            return Ok(Reconciled::After(next_available(&active, min_ready, now)));
        }
        Ok(Reconciled::Done)
    }
}

/// Returns how long until the next ready pod has been ready for `min_ready` seconds.
fn next_available(active: &[Arc<Pod>], min_ready: i32, now: jiff::Timestamp) -> Duration {
    let waits = active.iter().filter_map(|pod| {
        let ready = crate::pod_state::condition(pod, "Ready").filter(|ready| ready.status == "True")?;
        let since = ready.last_transition_time.as_ref()?.0;
        let left = i64::from(min_ready) - (now.as_second() - since.as_second());
        u64::try_from(left).ok().filter(|left| *left > 0)
    });
    Duration::from_secs(waits.min().unwrap_or(1))
}

fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

fn selector_of(set: &ReplicaSet) -> Result<Selector, Error> {
    let selector = set.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
    Selector::try_from(selector).map_err(|error| Error::Object(format!("invalid selector: {error}")))
}
