//! EndpointSlices of Services with selectors. Keys come from Services, from pods through the selectors and
//! from slices; `endpointslice/plan.rs` computes the writes, this file does them. The service proxy and DNS
//! on every node read the slices.

mod plan;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams};
use master_client::{Delta, EventType, HandlerGuard, Informers, ObjectKey, Recorder, WorkQueue, reference};

use crate::context::Context;
use crate::controller::{Controller, Reconciled};
use crate::error::{Error, describe, ignore_not_found, is_conflict, is_namespace_terminating};
use crate::service_endpoints::{belongs, differs, is_selected, is_selecting};

/// Label that names the controller that owns a slice.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub(crate) struct EndpointSliceController {
    context: Context,
    recorder: Recorder,
    /// Revisions that this controller wrote, by Service and slice: until the cache has reached them, a
    /// Service is not reconciled, since its slices would be created twice.
    written: Mutex<BTreeMap<ObjectKey, BTreeMap<String, u64>>>,
}

impl EndpointSliceController {
    pub fn new(context: Context) -> Self {
        let recorder = context.recorder("endpoint-slice-controller");
        Self { context, recorder, written: Mutex::default() }
    }

    fn informers(&self) -> &Informers {
        &self.context.informers
    }

    fn note_written(&self, service: &ObjectKey, slice: &EndpointSlice) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let name = slice.metadata.name.clone().unwrap_or_default();
        written.entry(service.clone()).or_default().insert(name, revision(slice));
    }

    fn forget_written(&self, service: &ObjectKey, slice: &str) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slices) = written.get_mut(service) {
            slices.remove(slice);
            if slices.is_empty() {
                written.remove(service);
            }
        }
    }

    fn cache_is_stale(&self, service: &ObjectKey, cached: &[Arc<EndpointSlice>]) -> bool {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slices) = written.get(service) else { return false };
        slices.iter().any(|(name, written)| {
            let found = cached.iter().find(|slice| slice.metadata.name.as_ref() == Some(name));
            found.is_none_or(|slice| revision(slice) < *written)
        })
    }

    fn on_slice(&self, delta: &Delta<'_, EndpointSlice>, queue: &WorkQueue<ObjectKey>) {
        let Some(slice) = delta.object().filter(|slice| is_managed(slice)) else { return };
        let labels = slice.metadata.labels.as_ref();
        let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else { return };
        let key = ObjectKey::new(slice.metadata.namespace.as_deref().unwrap_or_default(), service.as_str());
        if delta.new.is_none() {
            self.forget_written(&key, slice.metadata.name.as_deref().unwrap_or_default());
        }
        queue.add(key);
    }

    async fn write(&self, key: &ObjectKey, service: &Service, plan: plan::SlicePlan) -> Result<(), Error> {
        let slices = self.context.namespaced::<EndpointSlice>(&key.namespace);
        for slice in plan.create {
            match slices.create(&PostParams::default(), &slice).await {
                Ok(created) => self.note_written(key, &created),
                Err(error) if is_namespace_terminating(&error) => return Ok(()),
                Err(error) => return Err(self.failed(service, "create", error)),
            }
        }
        for slice in plan.update {
            let name = slice.metadata.name.clone().unwrap_or_default();
            match ignore_not_found(slices.replace(&name, &PostParams::default(), &slice).await) {
                Ok(Some(updated)) => self.note_written(key, &updated),
                Ok(None) => self.forget_written(key, &name),
                Err(error) => return Err(self.failed(service, "update", error)),
            }
        }
        for name in plan.delete {
            self.forget_written(key, &name);
            ignore_not_found(slices.delete(&name, &DeleteParams::default()).await)?;
        }
        Ok(())
    }

    fn failed(&self, service: &Service, verb: &str, error: kube::Error) -> Error {
        if !is_conflict(&error) {
            let name = service.metadata.name.as_deref().unwrap_or_default();
            let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
            let message = format!(
                "Error updating Endpoint Slices for Service {namespace}/{name}: failed to {verb} EndpointSlice \
                 for Service {namespace}/{name}: {}",
                describe(&error)
            );
            let reason = "FailedToUpdateEndpointSlices";
            self.recorder.event(reference(service), EventType::Warning, reason, message);
        }
        error.into()
    }
}

/// Queues every Service whose selector accepts the pod, as it was or as it is.
pub(crate) fn queue_services_of_pod(
    informers: &Informers,
    delta: &Delta<'_, Pod>,
    queue: &WorkQueue<ObjectKey>,
) {
    if let (Some(old), Some(new)) = (delta.old, delta.new)
        && !differs(old, new)
    {
        return;
    }
    let Some(pod) = delta.object() else { return };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    for service in informers.services.cache().in_namespace(namespace) {
        if delta.states().any(|pod| is_selected(&service, pod)) {
            queue.add(ObjectKey::of(&*service));
        }
    }
}

fn revision(slice: &EndpointSlice) -> u64 {
    let revision = slice.metadata.resource_version.as_deref();
    revision.and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

fn is_managed(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == MANAGER)
}

#[async_trait]
impl Controller for EndpointSliceController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "endpointslice"
    }

    fn workers(&self) -> usize {
        5
    }

    fn register(self: Arc<Self>, queue: &Arc<WorkQueue<ObjectKey>>) -> Vec<HandlerGuard> {
        let services = {
            let queue = queue.clone();
            self.informers().services.add_handler(move |delta| {
                if let Some(service) = delta.object() {
                    queue.add(ObjectKey::of(&**service));
                }
            })
        };
        let slices = {
            let (this, queue) = (self.clone(), queue.clone());
            self.informers().endpoint_slices.add_handler(move |delta| this.on_slice(delta, &queue))
        };
        let pods = {
            let (this, queue) = (self.clone(), queue.clone());
            self.informers()
                .pods
                .add_handler(move |delta| queue_services_of_pod(this.informers(), delta, &queue))
        };
        vec![services, slices, pods]
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Reconciled, Error> {
        let Some(service) = self.informers().services.cache().get(key) else {
            // The Service's slices are its dependents, so the garbage collector deletes them.
            self.written.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
            return Ok(Reconciled::Done);
        };
        if !is_selecting(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(Reconciled::Done);
        }
        let slices = self.informers().endpoint_slices.cache();
        let existing: Vec<_> = slices
            .by_index(Informers::BY_SERVICE, &key.to_string())
            .into_iter()
            .filter(|slice| is_managed(slice) && slice.metadata.deletion_timestamp.is_none())
            .collect();
        if self.cache_is_stale(key, &existing) {
            return Err(Error::Stale("a written slice".to_owned()));
        }
        let pods = self.informers().pods.cache().in_namespace(&key.namespace);
        let pods: Vec<_> =
            pods.into_iter().filter(|pod| is_selected(&service, pod) && belongs(pod, true)).collect();
        let zone = |node: &str| {
            let node = self.informers().nodes.cache().find("", node)?;
            node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").cloned()
        };
        let plan = plan::compute(&service, &pods, &existing, &zone, &self.context.time());
        self.write(key, &service, plan).await?;
        Ok(Reconciled::Done)
    }
}
