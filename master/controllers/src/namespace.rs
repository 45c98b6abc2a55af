//! Namespace deletion: deletes everything in a namespace that is being deleted, kind by kind, and removes its
//! `kubernetes` finalizer when nothing is left. Keys are namespaces. Conditions say what blocks the deletion.

mod conditions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams, Request};
use master_client::{HandlerGuard, ObjectKey, WorkQueue};

use crate::api_resources::{self, ListableResource};
use crate::context::Context;
use crate::controller::{Controller, Reconciled};
use crate::error::{Error, ignore_not_found, is_not_found};

/// Finalizer that this controller removes.
const FINALIZER: &str = "kubernetes";
/// Pause between checks of a namespace that still has content.
const RECHECK: Duration = Duration::from_millis(500);
/// Pause between checks while only pods in their grace period are left.
const RECHECK_PODS: Duration = Duration::from_secs(1);

pub(crate) struct NamespaceController {
    context: Context,
}

/// The content that is left in a namespace.
#[derive(Default)]
pub(crate) struct RemainingContent {
    /// Number of objects left, by kind.
    pub objects: BTreeMap<String, usize>,
    /// Number of objects that wait for each finalizer.
    pub finalizers: BTreeMap<String, usize>,
    /// Reasons why content could not be deleted.
    pub failures: Vec<String>,
    /// Why discovery of the API's resources failed; `None` when it succeeded.
    pub discovery: Option<String>,
}

impl RemainingContent {
    fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.failures.is_empty() && self.discovery.is_none()
    }
}

impl NamespaceController {
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    /// Deletes everything in the namespace and reports what is left.
    async fn delete_content(&self, namespace: &str) -> RemainingContent {
        let mut remains = RemainingContent::default();
        let kinds = match api_resources::discover(&self.context.client).await {
            Ok(kinds) => kinds,
            Err(error) => {
                remains.discovery = Some(error.to_string());
                return remains;
            }
        };
        for kind in kinds.into_iter().filter(|kind| kind.namespaced && kind.deletable) {
            if let Err(error) = self.delete_kind(&kind, namespace, &mut remains).await {
                remains.failures.push(error.to_string());
            }
        }
        remains
    }

    async fn delete_kind(
        &self,
        kind: &ListableResource,
        namespace: &str,
        remains: &mut RemainingContent,
    ) -> Result<(), Error> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.context.client.clone(), namespace, &kind.resource);
        let left = api.list_metadata(&ListParams::default()).await?.items;
        if left.is_empty() {
            return Ok(());
        }
        if kind.collection_deletable {
            api.delete_collection(&DeleteParams::background(), &ListParams::default()).await?;
        } else {
            for object in &left {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                ignore_not_found(api.delete(name, &DeleteParams::background()).await)?;
            }
        }
        for object in api.list_metadata(&ListParams::default()).await?.items {
            *remains.objects.entry(kind.full_name()).or_default() += 1;
            for finalizer in object.metadata.finalizers.unwrap_or_default() {
                *remains.finalizers.entry(finalizer).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Removes the `kubernetes` finalizer; without finalizers the namespace is deleted.
    async fn finalize(&self, namespace: &Namespace) -> Result<(), Error> {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let mut finalized = namespace.clone();
        if let Some(finalizers) = finalized.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        let body = serde_json::to_vec(&finalized).map_err(|error| Error::Object(error.to_string()))?;
        let url = <Namespace as kube::Resource>::url_path(&(), None);
        let request = Request::new(url)
            .replace_subresource("finalize", name, &PostParams::default(), body)
            .map_err(|error| Error::Object(error.to_string()))?;
        ignore_not_found(self.context.client.request::<Namespace>(request).await)?;
        Ok(())
    }

    async fn write_conditions(
        &self,
        namespace: &Namespace,
        remains: &RemainingContent,
    ) -> Result<Namespace, Error> {
        let mut updated = namespace.clone();
        let status = updated.status.get_or_insert_default();
        status.phase = Some("Terminating".to_owned());
        conditions::update(status, remains, &self.context.time());
        if updated.status == namespace.status {
            return Ok(updated);
        }
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let namespaces = self.context.all::<Namespace>();
        Ok(namespaces.replace_status(name, &PostParams::default(), &updated).await?)
    }
}

/// Whether objects may still be created in the namespace.
pub(crate) fn is_active(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_none()
        && namespace.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Terminating")
}

fn waits_for_us(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    namespace.metadata.deletion_timestamp.is_some()
        && finalizers.is_some_and(|finalizers| finalizers.iter().any(|finalizer| finalizer == FINALIZER))
}

#[async_trait]
impl Controller for NamespaceController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "namespace"
    }

    fn workers(&self) -> usize {
        10
    }

    fn register(self: Arc<Self>, queue: &Arc<WorkQueue<ObjectKey>>) -> Vec<HandlerGuard> {
        let namespaces = {
            let queue = queue.clone();
            self.context.informers.namespaces.add_handler(move |delta| {
                if let Some(namespace) = delta.new.filter(|namespace| waits_for_us(namespace)) {
                    queue.add(ObjectKey::of(&**namespace));
                }
            })
        };
        // Most deletions wait for the last pod, so its deletion queues the namespace.
        let pods = {
            let (this, queue) = (self.clone(), queue.clone());
            self.context.informers.pods.add_handler(move |delta: &master_client::Delta<'_, Pod>| {
                let (Some(pod), None) = (delta.old, delta.new) else { return };
                let name = pod.metadata.namespace.as_deref().unwrap_or_default();
                let namespace = this.context.informers.namespaces.cache().find("", name);
                if namespace.is_some_and(|namespace| waits_for_us(&namespace)) {
                    queue.add_after(ObjectKey::new("", name), Duration::from_millis(50));
                }
            })
        };
        vec![namespaces, pods]
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Reconciled, Error> {
        let namespaces = self.context.all::<Namespace>();
        // Read live: the cache may still show a namespace of this name that is already gone.
        let namespace = match namespaces.get(&key.name).await {
            Err(error) if is_not_found(&error) => return Ok(Reconciled::Done),
            result => result?,
        };
        if !waits_for_us(&namespace) {
            return Ok(Reconciled::Done);
        }
        let remains = self.delete_content(&key.name).await;
        let namespace = self.write_conditions(&namespace, &remains).await?;
        if remains.is_empty() {
            self.finalize(&namespace).await?;
            return Ok(Reconciled::Done);
        }
        let only_pods = remains.objects.keys().all(|kind| kind.starts_with("pods."));
        Ok(Reconciled::After(if only_pods { RECHECK_PODS } else { RECHECK }))
    }
}
