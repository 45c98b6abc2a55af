//! Processes one object: deletes it when all its owners are gone, removes references to absent owners,
//! finishes a foreground deletion, or orphans dependents. Every decision rests on live reads, never on a
//! cache alone. Called by `garbage_collector.rs`.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use master_client::EventType;
use serde_json::{Value, json};

use super::GarbageCollector;
use super::graph::{Coordinates, FOREGROUND, GraphNode, ORPHAN};
use crate::error::{Error, ignore_not_found, is_conflict, is_not_found};
use crate::owner::uid;

/// State of an owner, from a live read.
#[derive(Debug, PartialEq, Eq)]
enum Owner {
    Solid,
    /// The owner is gone, or another object has its name.
    Absent,
    /// The owner waits in foreground deletion until its dependents are gone.
    Waiting,
}

impl GarbageCollector {
    fn api(&self, identity: &Coordinates) -> Result<Api<DynamicObject>, Error> {
        let kind = self.kind(&identity.api_version, &identity.kind).ok_or_else(|| {
            Error::Object(format!("the API has no kind {} {}", identity.api_version, identity.kind))
        })?;
        let client = self.context.client.clone();
        Ok(if kind.namespaced {
            Api::namespaced_with(client, &identity.namespace, &kind.resource)
        } else {
            Api::all_with(client, &kind.resource)
        })
    }

    /// Reads the object's metadata live; `None` when it is gone or was replaced by another object of its
    /// name.
    async fn live(&self, identity: &Coordinates) -> Result<Option<ObjectMeta>, Error> {
        let api = self.api(identity)?;
        match api.get_metadata(&identity.name).await {
            Ok(object) if uid(&object.metadata) == &*identity.uid => Ok(Some(object.metadata)),
            Ok(_) => Ok(None),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn owner_state(&self, dependent: &Coordinates, owner: &OwnerReference) -> Result<Owner, Error> {
        let kind = self.kind(&owner.api_version, &owner.kind);
        if dependent.namespace.is_empty() && kind.is_some_and(|kind| kind.namespaced) {
            // There is no namespace to look in, so whether the owner is absent is not known.
            tracing::warn!(
                ?dependent,
                owner = owner.name,
                "a cluster-scoped object cannot have a namespaced owner"
            );
            return Ok(Owner::Solid);
        }
        let identity = Coordinates {
            api_version: owner.api_version.as_str().into(),
            kind: owner.kind.as_str().into(),
            namespace: dependent.namespace.clone(),
            name: owner.name.clone(),
            uid: owner.uid.as_str().into(),
        };
        Ok(match self.live(&identity).await? {
            None => Owner::Absent,
            Some(meta) if meta.deletion_timestamp.is_some() && has_finalizer(&meta, FOREGROUND) => {
                Owner::Waiting
            }
            Some(_) => Owner::Solid,
        })
    }

    /// Processes one object that may have to be deleted.
    pub(super) async fn attempt_to_delete(&self, node: &GraphNode) -> Result<(), Error> {
        if node.deleting && !node.deleting_dependents {
            return Ok(());
        }
        let Some(meta) = self.live(&node.identity).await? else {
            // The object is gone but still in the graph, so the watch had a gap: its dependents lose an
            // owner.
            self.forget(&node.identity.uid);
            return Ok(());
        };
        if node.deleting_dependents {
            return self.finish_foreground(node, &meta).await;
        }
        self.report_foreign_owners(&node.identity, &meta);
        let (mut solid, mut absent, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for owner in meta.owner_references.iter().flatten() {
            match self.owner_state(&node.identity, owner).await? {
                Owner::Solid => solid.push(owner),
                Owner::Absent => absent.push(owner),
                Owner::Waiting => waiting.push(owner),
            }
        }
        if absent.is_empty() && waiting.is_empty() {
            return Ok(());
        }
        if !solid.is_empty() {
            let gone = absent.into_iter().chain(waiting).map(|owner| owner.uid.as_str());
            return self.drop_owners(&node.identity, gone).await;
        }
        if !waiting.is_empty() && !node.dependents.is_empty() {
            self.unblock_circles(node).await?;
            return self.delete(&node.identity, PropagationPolicy::Foreground).await;
        }
        let policy = if has_finalizer(&meta, ORPHAN) {
            PropagationPolicy::Orphan
        } else if has_finalizer(&meta, FOREGROUND) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        self.delete(&node.identity, policy).await
    }

    /// Records an event when an object names an owner in another namespace, which is not a valid owner.
    fn report_foreign_owners(&self, dependent: &Coordinates, meta: &ObjectMeta) {
        for owner in meta.owner_references.iter().flatten() {
            let foreign = self.graph().get(&owner.uid).is_some_and(|known| {
                let namespace = &known.identity.namespace;
                !known.virtual_ && !namespace.is_empty() && *namespace != dependent.namespace
            });
            if !foreign || dependent.namespace.is_empty() {
                continue;
            }
            let about = ObjectReference {
                api_version: Some(dependent.api_version.to_string()),
                kind: Some(dependent.kind.to_string()),
                namespace: Some(dependent.namespace.clone()),
                name: Some(dependent.name.clone()),
                uid: Some(dependent.uid.to_string()),
                ..ObjectReference::default()
            };
            let message = format!(
                "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace {:?}",
                owner.api_version,
                owner.kind,
                dependent.namespace,
                owner.name,
                owner.uid,
                dependent.namespace
            );
            self.recorder.event(about, EventType::Warning, "OwnerRefInvalidNamespace", message);
        }
    }

    /// Finishes an owner's foreground deletion once no dependent blocks it.
    async fn finish_foreground(&self, node: &GraphNode, meta: &ObjectMeta) -> Result<(), Error> {
        let own = &node.identity.uid;
        let mut blocking = self.blocking_dependents(own);
        if blocking.is_empty() {
            // A dependent may have been written that is not in the graph yet.
            self.catch_up().await?;
            blocking = self.blocking_dependents(own);
        }
        if blocking.is_empty() {
            return self.remove_finalizer(&node.identity, meta, FOREGROUND).await;
        }
        for uid in blocking {
            self.queue_delete(&uid);
        }
        Ok(())
    }

    /// Unblocks dependents that are themselves deleted in foreground: in a circle both would wait for ever.
    async fn unblock_circles(&self, node: &GraphNode) -> Result<(), Error> {
        for dependent in self.dependents(&node.identity.uid) {
            if !dependent.deleting_dependents {
                continue;
            }
            let owners: Vec<Value> = dependent
                .owners
                .iter()
                .map(|owner| json!({ "uid": owner.uid, "blockOwnerDeletion": false }))
                .collect();
            let patch = json!({ "metadata": { "uid": dependent.identity.uid, "ownerReferences": owners }});
            self.patch(&dependent.identity, patch).await?;
        }
        Ok(())
    }

    /// Removes references to the given owners from an object.
    async fn drop_owners<'a>(
        &self,
        identity: &Coordinates,
        owners: impl Iterator<Item = &'a str>,
    ) -> Result<(), Error> {
        let owners: Vec<Value> = owners.map(|uid| json!({ "$patch": "delete", "uid": uid })).collect();
        self.patch(identity, json!({ "metadata": { "uid": identity.uid, "ownerReferences": owners }})).await
    }

    async fn patch(&self, identity: &Coordinates, patch: Value) -> Result<(), Error> {
        let api = self.api(identity)?;
        let patched =
            api.patch_metadata(&identity.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        match ignore_not_found(patched) {
            // Another object has taken the name.
            Err(kube::Error::Api(status)) if status.code == 422 => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }

    async fn delete(&self, identity: &Coordinates, policy: PropagationPolicy) -> Result<(), Error> {
        let preconditions = Preconditions { uid: Some(identity.uid.to_string()), resource_version: None };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        tracing::debug!(?identity, "collecting");
        match self.api(identity)?.delete(&identity.name, &params).await {
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }

    /// Orphans the dependents of an object, then lets its deletion go on.
    pub(super) async fn attempt_to_orphan(&self, node: &GraphNode) -> Result<(), Error> {
        // A dependent that is not in the graph yet would not be orphaned, but deleted with its owner.
        self.catch_up().await?;
        for dependent in self.dependents(&node.identity.uid) {
            self.drop_owners(&dependent.identity, std::iter::once(&*node.identity.uid)).await?;
        }
        match self.live(&node.identity).await? {
            Some(meta) => self.remove_finalizer(&node.identity, &meta, ORPHAN).await,
            None => Ok(()),
        }
    }

    async fn remove_finalizer(
        &self,
        identity: &Coordinates,
        meta: &ObjectMeta,
        finalizer: &str,
    ) -> Result<(), Error> {
        if !has_finalizer(meta, finalizer) {
            return Ok(());
        }
        let left: Vec<&String> =
            meta.finalizers.iter().flatten().filter(|own| own.as_str() != finalizer).collect();
        // The resourceVersion ensures that no finalizer added meanwhile is lost.
        let patch = json!({ "metadata": { "resourceVersion": meta.resource_version, "finalizers": left }});
        let api = self.api(identity)?;
        let patched = api.patch_metadata(&identity.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        ignore_not_found(patched)?;
        Ok(())
    }
}

fn has_finalizer(meta: &ObjectMeta, name: &str) -> bool {
    meta.finalizers.iter().flatten().any(|finalizer| finalizer == name)
}
