//! The ownership graph: every watched object, by UID, with its owners and dependents. Owners that were
//! named but not seen are kept as virtual nodes until a live read says whether they exist. Pure; fed by the
//! handlers in `garbage_collector.rs`, which queue the returned work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// Finalizer of an owner that waits until its blocking dependents are deleted.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an owner whose dependents must be orphaned before it is deleted.
pub(super) const ORPHAN: &str = "orphan";

/// Identity of an object, as needed to address it in the API. What many objects have in common is shared,
/// since the graph holds nearly all objects of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Coordinates {
    pub api_version: Arc<str>,
    pub kind: Arc<str>,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    pub name: String,
    pub uid: Arc<str>,
}

/// An object in the graph.
#[derive(Clone, Debug)]
pub(super) struct GraphNode {
    pub identity: Coordinates,
    pub owners: Vec<OwnerReference>,
    pub dependents: BTreeSet<Arc<str>>,
    pub deleting: bool,
    pub deleting_dependents: bool,
    pub orphaning: bool,
    /// Whether the object was only named by a dependent and never seen.
    pub virtual_: bool,
}

impl Coordinates {
    /// Whether `reference`, on an object in `namespace`, names this object: a namespaced owner is valid
    /// only in its own namespace, and its name, kind and group must match too. Its version may differ.
    pub fn is_named_by(&self, reference: &OwnerReference, namespace: &str) -> bool {
        let group = |api_version: &str| api_version.split_once('/').map(|(group, _)| group.to_owned());
        *self.uid == *reference.uid
            && self.name == reference.name
            && *self.kind == *reference.kind
            && group(&self.api_version) == group(&reference.api_version)
            && (self.namespace.is_empty() || self.namespace == namespace)
    }
}

impl GraphNode {
    fn new(identity: Coordinates) -> Self {
        Self {
            identity,
            owners: Vec::new(),
            dependents: BTreeSet::new(),
            deleting: false,
            deleting_dependents: false,
            orphaning: false,
            virtual_: true,
        }
    }

    /// Whether the deletion of `owner` must wait for this object.
    pub fn blocks(&self, owner: &str) -> bool {
        self.owners.iter().any(|own| own.uid == owner && own.block_owner_deletion == Some(true))
    }
}

/// All known objects by UID.
#[derive(Default)]
pub(super) struct Graph {
    nodes: BTreeMap<Arc<str>, GraphNode>,
}

/// The objects that a change makes worth a look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// UIDs of objects that may have to be deleted.
    pub delete: BTreeSet<Arc<str>>,
    /// UIDs of objects whose dependents are to be orphaned.
    pub orphan: BTreeSet<Arc<str>>,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&GraphNode> {
        self.nodes.get(uid)
    }

    /// Returns the dependents of an object.
    pub fn dependents(&self, uid: &str) -> Vec<&GraphNode> {
        let node = self.nodes.get(uid);
        node.into_iter().flat_map(|node| &node.dependents).filter_map(|uid| self.nodes.get(uid)).collect()
    }

    /// Adds an object that appeared, or updates one that changed.
    pub fn upsert(&mut self, identity: Coordinates, meta: &ObjectMeta) -> Work {
        let uid = identity.uid.clone();
        let owners = meta.owner_references.clone().unwrap_or_default();
        let before = self.nodes.get(&uid).cloned();
        let mut work = Work::default();
        if before.as_ref().is_some_and(|before| before.virtual_) {
            // The object was virtual: dependents that named it by its UID may have meant another object.
            for dependent in self.dependents(&uid) {
                let own = dependent.owners.iter().filter(|owner| *owner.uid == *uid);
                if !own.into_iter().all(|owner| identity.is_named_by(owner, &dependent.identity.namespace)) {
                    work.delete.insert(dependent.identity.uid.clone());
                }
            }
        }
        let node = self.nodes.entry(uid.clone()).or_insert_with(|| GraphNode::new(identity.clone()));
        node.identity = identity;
        node.virtual_ = false;
        node.deleting = meta.deletion_timestamp.is_some();
        let has = |name: &str| meta.finalizers.iter().flatten().any(|finalizer| finalizer == name);
        node.deleting_dependents = node.deleting && has(FOREGROUND);
        node.orphaning = node.deleting && has(ORPHAN);
        node.owners.clone_from(&owners);
        let node = node.clone();
        self.relink(&node, before.as_ref().map_or(&[], |before| &before.owners), &mut work);
        if node.orphaning && !before.as_ref().is_some_and(|before| before.orphaning) {
            work.orphan.insert(uid.clone());
        }
        if node.deleting_dependents && !before.is_some_and(|before| before.deleting_dependents) {
            work.delete.insert(uid);
            work.delete.extend(node.dependents);
        }
        work
    }

    /// Links a node to its present owners; `before` are its former ones.
    fn relink(&mut self, node: &GraphNode, before: &[OwnerReference], work: &mut Work) {
        let uid = &node.identity.uid;
        for gone in before.iter().filter(|old| !node.owners.iter().any(|new| new.uid == old.uid)) {
            if let Some(owner) = self.nodes.get_mut(gone.uid.as_str()) {
                owner.dependents.remove(uid);
                if owner.deleting_dependents {
                    work.delete.insert(gone.uid.as_str().into());
                }
            }
            self.drop_unused(&gone.uid);
        }
        for reference in &node.owners {
            let old = before.iter().find(|old| old.uid == reference.uid);
            let owner_uid: Arc<str> = reference.uid.as_str().into();
            let owner = self.nodes.entry(owner_uid.clone()).or_insert_with(|| {
                GraphNode::new(Coordinates {
                    api_version: reference.api_version.as_str().into(),
                    kind: reference.kind.as_str().into(),
                    namespace: node.identity.namespace.clone(),
                    name: reference.name.clone(),
                    uid: owner_uid.clone(),
                })
            });
            owner.dependents.insert(uid.clone());
            let named = owner.identity.is_named_by(reference, &node.identity.namespace);
            if old != Some(reference) && (owner.virtual_ || !named) {
                // Only a live read, made for the dependent, tells whether the named owner exists.
                work.delete.insert(uid.clone());
            }
            let unblocked = old.is_some_and(|old| old.block_owner_deletion != reference.block_owner_deletion);
            if owner.deleting_dependents {
                if unblocked {
                    work.delete.insert(owner_uid);
                }
                if old.is_none() {
                    work.delete.insert(uid.clone());
                }
            }
        }
    }

    /// Removes a deleted object: its dependents lose an owner, and its owners may have waited for its
    /// deletion.
    pub fn remove(&mut self, uid: &str) -> Work {
        let mut work = Work::default();
        let Some(node) = self.nodes.remove(uid) else { return work };
        work.delete.extend(node.dependents.iter().cloned());
        for reference in &node.owners {
            if let Some(owner) = self.nodes.get_mut(reference.uid.as_str()) {
                owner.dependents.remove(uid);
                if owner.deleting_dependents {
                    work.delete.insert(owner.identity.uid.clone());
                }
            }
            self.drop_unused(&reference.uid);
        }
        if !node.dependents.is_empty() {
            // Dependents still name the object: it stays as a virtual node, so that they are found together.
            let mut rest = GraphNode::new(node.identity);
            rest.dependents = node.dependents;
            self.nodes.insert(rest.identity.uid.clone(), rest);
        }
        work
    }

    fn drop_unused(&mut self, uid: &str) {
        if self.nodes.get(uid).is_some_and(|node| node.virtual_ && node.dependents.is_empty()) {
            self.nodes.remove(uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn identity(uid: &str) -> Coordinates {
        Coordinates {
            api_version: "v1".into(),
            kind: "Thing".into(),
            namespace: "d".to_owned(),
            name: uid.to_owned(),
            uid: uid.into(),
        }
    }

    fn meta(owners: &[&str], extra: Value) -> ObjectMeta {
        let mut meta: ObjectMeta = serde_json::from_value(extra).unwrap();
        let reference = |uid: &&str| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Thing".to_owned(),
            name: (*uid).to_owned(),
            uid: (*uid).to_owned(),
            block_owner_deletion: Some(true),
            ..OwnerReference::default()
        };
        meta.owner_references = Some(owners.iter().map(reference).collect());
        meta
    }

    fn set(uids: &[&str]) -> BTreeSet<Arc<str>> {
        uids.iter().map(|uid| (*uid).into()).collect()
    }

    fn deleting(finalizer: &str) -> Value {
        json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [finalizer]})
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let mut graph = Graph::default();
        graph.upsert(identity("owner"), &meta(&[], json!({})));
        assert_eq!(graph.upsert(identity("child"), &meta(&["owner"], json!({}))), Work::default());
        assert_eq!(graph.remove("owner").delete, set(&["child"]));
        graph.remove("child");
        assert!(graph.nodes.is_empty(), "nothing may be left behind");
    }

    #[test]
    fn an_owner_nobody_has_seen_is_verified() {
        let mut graph = Graph::default();
        assert_eq!(graph.upsert(identity("child"), &meta(&["ghost"], json!({}))).delete, set(&["child"]));
        assert!(graph.get("ghost").unwrap().virtual_);
        graph.upsert(identity("ghost"), &meta(&[], json!({})));
        assert!(!graph.get("ghost").unwrap().virtual_);
        assert_eq!(graph.dependents("ghost").len(), 1);
    }

    #[test]
    fn an_owner_of_another_namespace_or_name_is_verified_whoever_is_seen_first() {
        let elsewhere = || Coordinates { namespace: "other".to_owned(), ..identity("child") };
        let misnamed = || {
            let mut meta = meta(&["owner"], json!({}));
            meta.owner_references.as_mut().unwrap()[0].name = "somebody".to_owned();
            meta
        };
        for owner_first in [true, false] {
            for (child, child_meta) in
                [(elsewhere(), meta(&["owner"], json!({}))), (identity("child"), misnamed())]
            {
                let mut graph = Graph::default();
                graph.upsert(identity("true-child"), &meta(&["owner"], json!({})));
                let mut work = Work::default();
                if owner_first {
                    graph.upsert(identity("owner"), &meta(&[], json!({})));
                    work = graph.upsert(child, &child_meta);
                } else {
                    graph.upsert(child, &child_meta);
                    work.delete.extend(graph.upsert(identity("owner"), &meta(&[], json!({}))).delete);
                }
                assert_eq!(work.delete, set(&["child"]), "owner first: {owner_first}");
            }
        }
    }

    #[test]
    fn foreground_deletion_looks_at_the_owner_and_at_all_dependents() {
        let mut graph = Graph::default();
        graph.upsert(identity("owner"), &meta(&[], json!({})));
        graph.upsert(identity("child"), &meta(&["owner"], json!({})));
        let work = graph.upsert(identity("owner"), &meta(&[], deleting(FOREGROUND)));
        assert_eq!(work.delete, set(&["owner", "child"]));
        assert!(graph.get("child").unwrap().blocks("owner"));
        assert_eq!(graph.remove("child").delete, set(&["owner"]));
    }

    #[test]
    fn orphaning_is_asked_for_once() {
        let mut graph = Graph::default();
        let work = graph.upsert(identity("owner"), &meta(&[], deleting(ORPHAN)));
        assert_eq!(work.orphan, set(&["owner"]));
        let again = graph.upsert(identity("owner"), &meta(&[], deleting(ORPHAN)));
        assert_eq!(again, Work::default());
    }
}
