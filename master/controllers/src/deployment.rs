//! Deployment: keeps one ReplicaSet for each template it has had, of which the current one gets the pods.
//! Keys come from Deployments, from ReplicaSets through their controller or selector, and from pods that
//! end (Recreate waits for them). Writes ReplicaSets and the Deployment's status, which
//! `deployment/status.rs` computes.

mod annotations;
mod arithmetic;
mod replica_sets;
mod rollout;
mod status;
mod template;

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use kube::core::Selector;
use master_client::{Delta, EventType, HandlerGuard, Informers, ObjectKey, Recorder, WorkQueue, reference};

use crate::context::Context;
use crate::controller::{Controller, Reconciled};
use crate::error::Error;
use crate::owner::{claim, controller_of, selects, uid};
use replica_sets::Sets;

pub(crate) struct DeploymentController {
    context: Context,
    recorder: Recorder,
}

impl DeploymentController {
    pub fn new(context: Context) -> Self {
        let recorder = context.recorder("deployment-controller");
        Self { context, recorder }
    }

    fn informers(&self) -> &Informers {
        &self.context.informers
    }

    fn deployments(&self, deployment: &Deployment) -> Api<Deployment> {
        self.context.namespaced(deployment.metadata.namespace.as_deref().unwrap_or_default())
    }

    /// Returns the key of the Deployment that a ReplicaSet's controller reference names, if it still has
    /// the same UID.
    fn controller_key(&self, set: &ObjectMeta) -> Option<ObjectKey> {
        let owner = controller_of(set).filter(|owner| owner.kind == "Deployment")?;
        let key = ObjectKey::new(set.namespace.as_deref().unwrap_or_default(), owner.name.as_str());
        let deployment = self.informers().deployments.cache().get(&key)?;
        (uid(&deployment.metadata) == owner.uid).then_some(key)
    }

    fn on_set(&self, delta: &Delta<'_, ReplicaSet>, queue: &WorkQueue<ObjectKey>) {
        for set in delta.states() {
            if let Some(key) = self.controller_key(&set.metadata) {
                queue.add(key);
            }
        }
        let Some(set) = delta.new.filter(|set| controller_of(&set.metadata).is_none()) else { return };
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        for deployment in self.informers().deployments.cache().in_namespace(namespace) {
            if selector_of(&deployment).is_ok_and(|selector| selects(&selector, &set.metadata)) {
                queue.add(ObjectKey::of(&*deployment));
            }
        }
    }

    /// Queues the Deployment of a pod that ended: a Recreate rollout continues when the last old pod is gone.
    fn on_pod(&self, delta: &Delta<'_, Pod>, queue: &WorkQueue<ObjectKey>) {
        let Some(pod) = delta.object() else { return };
        let ended = delta.new.is_none_or(|pod| crate::pod_state::is_terminal(pod));
        let Some(owner) = controller_of(&pod.metadata).filter(|_| ended) else { return };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let Some(set) = self.informers().replica_sets.cache().find(namespace, &owner.name) else { return };
        if uid(&set.metadata) != owner.uid {
            return;
        }
        let Some(key) = self.controller_key(&set.metadata) else { return };
        let deployment = self.informers().deployments.cache().get(&key);
        if deployment.is_some_and(|deployment| !arithmetic::is_rolling(&deployment)) {
            queue.add(key);
        }
    }

    /// Writes `wanted` when it differs, and takes over the server's answer.
    async fn write_status(&self, deployment: &mut Deployment, wanted: DeploymentStatus) -> Result<(), Error> {
        if deployment.status.as_ref() == Some(&wanted) {
            return Ok(());
        }
        deployment.status = Some(wanted);
        self.put_status(deployment).await
    }

    /// Writes status and annotations. A status update carries annotations too, and does not raise the
    /// generation of the spec.
    async fn put_status(&self, deployment: &mut Deployment) -> Result<(), Error> {
        let name = deployment.metadata.name.clone().unwrap_or_default();
        let api = self.deployments(deployment);
        let written = api.replace_status(&name, &PostParams::default(), deployment).await?;
        deployment.status = written.status;
        deployment.metadata.annotations = written.metadata.annotations;
        deployment.metadata.resource_version = written.metadata.resource_version;
        Ok(())
    }

    /// Keeps a paused Deployment from timing out, and restarts its deadline when it is resumed.
    async fn note_pause(&self, deployment: &mut Deployment) -> Result<(), Error> {
        if !status::has_deadline(deployment) {
            return Ok(());
        }
        let paused = is_paused(deployment);
        let mut wanted = deployment.status.clone().unwrap_or_default();
        let reason = status::find(&wanted, status::PROGRESSING).and_then(|now| now.reason.clone());
        let noted = reason.as_deref() == Some("DeploymentPaused");
        if reason.as_deref() == Some(status::TIMED_OUT) || paused == noted {
            return Ok(());
        }
        let (reason, message) = if paused {
            ("DeploymentPaused", "Deployment is paused")
        } else {
            ("DeploymentResumed", "Deployment is resumed")
        };
        let now = self.context.now();
        status::set(&mut wanted, status::condition(status::PROGRESSING, "Unknown", reason, message, now));
        self.write_status(deployment, wanted).await
    }

    /// Scales and updates the status, but rolls nothing out.
    async fn sync(&self, deployment: &mut Deployment, sets: Vec<ReplicaSet>) -> Result<(), Error> {
        let mut sets = self.sync_sets(deployment, sets, false).await?;
        self.scale(deployment, &mut sets).await?;
        if is_paused(deployment) {
            self.clean_up(deployment, &sets.old).await?;
        }
        self.sync_status(deployment, &sets).await
    }

    async fn sync_status(&self, deployment: &mut Deployment, sets: &Sets) -> Result<(), Error> {
        let wanted = status::compute(deployment, sets.new.as_ref(), &sets.all(), self.context.now());
        self.write_status(deployment, wanted).await
    }
}

#[async_trait]
impl Controller for DeploymentController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "deployment"
    }

    fn workers(&self) -> usize {
        5
    }

    fn register(self: Arc<Self>, queue: &Arc<WorkQueue<ObjectKey>>) -> Vec<HandlerGuard> {
        let deployments = {
            let queue = queue.clone();
            self.informers().deployments.add_handler(move |delta| {
                if let Some(deployment) = delta.object() {
                    queue.add(ObjectKey::of(&**deployment));
                }
            })
        };
        let sets = {
            let (this, queue) = (self.clone(), queue.clone());
            self.informers().replica_sets.add_handler(move |delta| this.on_set(delta, &queue))
        };
        let pods = {
            let (this, queue) = (self.clone(), queue.clone());
            self.informers().pods.add_handler(move |delta| this.on_pod(delta, &queue))
        };
        vec![deployments, sets, pods]
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Reconciled, Error> {
        let Some(cached) = self.informers().deployments.cache().get(key) else { return Ok(Reconciled::Done) };
        let mut deployment = (*cached).clone();
        let selector = selector_of(&deployment)?;
        if selects_everything(&deployment) {
            let message =
                "This deployment is selecting all pods. A non-empty selector is required.".to_owned();
            self.recorder.event(reference(&deployment), EventType::Warning, "SelectingAll", message);
            return Ok(Reconciled::Done);
        }
        let candidates = self.informers().replica_sets.cache().in_namespace(&key.namespace);
        let claimed = claim(&self.context, &deployment, &selector, candidates).await?;
        let sets: Vec<ReplicaSet> = claimed.iter().map(|set| (**set).clone()).collect();
        if deployment.metadata.deletion_timestamp.is_some() {
            let sets = Sets::find(&deployment, sets);
            self.sync_status(&mut deployment, &sets).await?;
            return Ok(Reconciled::Done);
        }
        self.note_pause(&mut deployment).await?;
        let scaling = DeploymentController::is_scaling(&deployment, &Sets::find(&deployment, sets.clone()));
        if is_paused(&deployment) || scaling {
            self.sync(&mut deployment, sets).await?;
            return Ok(Reconciled::Done);
        }
        let sets = if arithmetic::is_rolling(&deployment) {
            self.roll(&mut deployment, sets).await?
        } else {
            self.recreate(&mut deployment, sets).await?
        };
        let now = self.context.now();
        let wanted = status::compute_rollout(&deployment, sets.new.as_ref(), &sets.all(), now);
        let next = status::next_check(&deployment, &wanted, now);
        self.write_status(&mut deployment, wanted).await?;
        Ok(next.map_or(Reconciled::Done, Reconciled::After))
    }
}

fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true)
}

fn selector_of(deployment: &Deployment) -> Result<Selector, Error> {
    let selector = deployment.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
    Selector::try_from(selector).map_err(|error| Error::Object(format!("invalid selector: {error}")))
}

fn selects_everything(deployment: &Deployment) -> bool {
    let selector = deployment.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
    selector.match_labels.is_none_or(|labels| labels.is_empty())
        && selector.match_expressions.is_none_or(|expressions| expressions.is_empty())
}
