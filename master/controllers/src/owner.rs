//! Ownership through controller references: who controls an object, and how a controller adopts matching
//! orphans and releases what no longer matches. Used by the ReplicaSet and Deployment controllers.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use kube::api::{Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::sync::Arc;

use crate::context::Context;
use crate::error::{Error, ignore_not_found};

/// Returns the reference to the controlling owner.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Creates a reference that makes `owner` the controller and blocks its foreground deletion until this
/// object is gone.
pub(crate) fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: uid(owner.meta()).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Returns the UID; empty when the object has none yet.
pub(crate) fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

/// Whether a label selector accepts the object's labels.
pub(crate) fn selects(selector: &Selector, meta: &ObjectMeta) -> bool {
    match &meta.labels {
        Some(labels) => selector.matches(labels),
        None => selector.matches(&Default::default()),
    }
}

/// Decision about one candidate for ownership.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Keep,
    Adopt,
    Release,
    Leave,
}

fn decide(owner: &ObjectMeta, selector: &Selector, candidate: &ObjectMeta) -> Claim {
    let matches = selects(selector, candidate);
    match controller_of(candidate) {
        Some(controller) if controller.uid != uid(owner) => Claim::Leave,
        Some(_) if matches => Claim::Keep,
        Some(_) if owner.deletion_timestamp.is_some() => Claim::Leave,
        Some(_) => Claim::Release,
        None if owner.deletion_timestamp.is_some() || !matches => Claim::Leave,
        None if candidate.deletion_timestamp.is_some() => Claim::Leave,
        None => Claim::Adopt,
    }
}

/// Returns those of `candidates` that `owner` controls, after adopting matching orphans and releasing what
/// it controls but no longer selects. Reads the owner live once before an adoption, so that an owner that
/// is gone or being deleted adopts nothing.
pub(crate) async fn claim<O, K>(
    context: &Context,
    owner: &O,
    selector: &Selector,
    candidates: Vec<Arc<K>>,
) -> Result<Vec<Arc<K>>, Error>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let mut claimed = Vec::new();
    let mut may_adopt = None;
    for candidate in candidates {
        match decide(owner.meta(), selector, candidate.meta()) {
            Claim::Leave => {}
            Claim::Keep => claimed.push(candidate),
            Claim::Release => release(context, owner.meta(), &*candidate).await?,
            Claim::Adopt => {
                let allowed = match may_adopt {
                    Some(allowed) => allowed,
                    None => *may_adopt.insert(owner_is_alive(context, owner).await?),
                };
                if allowed && adopt(context, owner, &*candidate).await? {
                    claimed.push(candidate);
                }
            }
        }
    }
    Ok(claimed)
}

async fn owner_is_alive<O>(context: &Context, owner: &O) -> Result<bool, Error>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let meta = owner.meta();
    let owners = context.namespaced::<O>(meta.namespace.as_deref().unwrap_or_default());
    let live = owners.get_opt(meta.name.as_deref().unwrap_or_default()).await?;
    Ok(live.is_some_and(|live| uid(live.meta()) == uid(meta) && live.meta().deletion_timestamp.is_none()))
}

async fn adopt<O, K>(context: &Context, owner: &O, candidate: &K) -> Result<bool, Error>
where
    O: Resource<DynamicType = ()>,
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let patch = json!({ "metadata": {
        "ownerReferences": [controller_reference(owner)],
        "uid": uid(candidate.meta()),
    }});
    Ok(patch_metadata(context, candidate, patch).await?.is_some())
}

async fn release<K>(context: &Context, owner: &ObjectMeta, candidate: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let patch = json!({ "metadata": {
        "ownerReferences": [{ "$patch": "delete", "uid": uid(owner) }],
        "uid": uid(candidate.meta()),
    }});
    match patch_metadata(context, candidate, patch).await {
        // Another object has taken the name: nothing to release.
        Err(Error::Api(kube::Error::Api(status))) if status.code == 422 => Ok(()),
        result => result.map(drop),
    }
}

async fn patch_metadata<K>(
    context: &Context,
    object: &K,
    patch: serde_json::Value,
) -> Result<Option<K>, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let meta = object.meta();
    let api = context.namespaced::<K>(meta.namespace.as_deref().unwrap_or_default());
    let name = meta.name.as_deref().unwrap_or_default();
    Ok(ignore_not_found(api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(app: &str, owner: Option<&str>) -> ObjectMeta {
        ObjectMeta {
            labels: Some([("app".to_owned(), app.to_owned())].into()),
            owner_references: owner.map(|uid| {
                vec![OwnerReference {
                    uid: uid.to_owned(),
                    controller: Some(true),
                    ..OwnerReference::default()
                }]
            }),
            ..ObjectMeta::default()
        }
    }

    fn owner() -> ObjectMeta {
        ObjectMeta { uid: Some("me".to_owned()), ..ObjectMeta::default() }
    }

    #[test]
    fn orphans_that_match_are_adopted_and_children_that_do_not_are_released() {
        let selector: Selector = [("app".to_owned(), "web".to_owned())].into_iter().collect();
        assert_eq!(decide(&owner(), &selector, &meta("web", None)), Claim::Adopt);
        assert_eq!(decide(&owner(), &selector, &meta("db", None)), Claim::Leave);
        assert_eq!(decide(&owner(), &selector, &meta("web", Some("me"))), Claim::Keep);
        assert_eq!(decide(&owner(), &selector, &meta("db", Some("me"))), Claim::Release);
        assert_eq!(decide(&owner(), &selector, &meta("web", Some("other"))), Claim::Leave);
    }

    #[test]
    fn an_owner_that_is_being_deleted_neither_adopts_nor_releases() {
        let selector: Selector = [("app".to_owned(), "web".to_owned())].into_iter().collect();
        let mut owner = owner();
        owner.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).ok();
        assert_eq!(decide(&owner, &selector, &meta("web", None)), Claim::Leave);
        assert_eq!(decide(&owner, &selector, &meta("db", Some("me"))), Claim::Leave);
    }
}
