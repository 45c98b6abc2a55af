//! Garbage collection by ownerReferences, over every kind the API has: dependents are deleted after their
//! last owner (background), before it (foreground), or are orphaned. Keys are UIDs. `graph.rs` holds the
//! ownership graph, `act.rs` decides and writes. Kinds that other controllers watch come from the shared
//! caches; every other kind gets a metadata watch of its own while this master leads. No object is
//! processed before the graph holds everything written before this leadership: otherwise an owner could be
//! deleted without dependents that are not known yet.

mod act;
mod graph;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use kube::Resource;
use kube::api::{Api, DynamicObject, PartialObjectMeta};
use master_client::{Delta, HandlerGuard, Informer, ListWatch, Object, Recorder, WorkQueue};
use proto_env::supervise::supervise;
use tokio_util::sync::CancellationToken;

use crate::api_resources::{self, ListableResource};
use crate::context::Context;
use crate::controller::{Controller, Reconciled};
use crate::error::Error;
use crate::owner::uid;
use graph::{Coordinates, Graph, GraphNode, Work};

/// Longest time to wait until a metadata watch has delivered earlier writes; after that its informer lists
/// the objects.
const CATCH_UP_GRACE: Duration = Duration::from_millis(200);

/// Interval between two discoveries of the API's kinds.
const DISCOVERY: Duration = Duration::from_secs(30);

/// A unit of work in the queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// Discover the kinds that the API has.
    Kinds,
    /// An object that may have to be deleted.
    Delete(Arc<str>),
    /// An object whose dependents are to be orphaned.
    Orphan(Arc<str>),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

pub(crate) struct GarbageCollector {
    context: Context,
    graph: Mutex<Graph>,
    kinds: Mutex<Vec<ListableResource>>,
    /// Metadata watches by full kind name.
    watches: Mutex<BTreeMap<String, MetadataWatch>>,
    queue: OnceLock<Arc<WorkQueue<Key>>>,
    /// Keys to queue once the graph is complete; `None` after that.
    held: Mutex<Option<BTreeSet<Key>>>,
    recorder: Recorder,
}

/// An informer of the metadata of one kind.
type MetadataInformer = Informer<PartialObjectMeta<DynamicObject>>;

/// A running metadata watch; dropping it stops the watch.
struct MetadataWatch {
    informer: Arc<MetadataInformer>,
    _guard: HandlerGuard,
    shutdown: CancellationToken,
}

impl Drop for MetadataWatch {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl GarbageCollector {
    pub fn new(context: Context) -> Self {
        let recorder = context.recorder("garbage-collector-controller");
        Self {
            context,
            recorder,
            held: Mutex::new(Some(BTreeSet::new())),
            graph: Mutex::default(),
            kinds: Mutex::default(),
            watches: Mutex::default(),
            queue: OnceLock::new(),
        }
    }

    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the kind that an owner reference names, in any version.
    fn kind(&self, api_version: &str, kind: &str) -> Option<ListableResource> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.iter().find(|own| own.resource.group == group && own.resource.kind == kind).cloned()
    }

    fn dependents(&self, uid: &str) -> Vec<GraphNode> {
        self.graph().dependents(uid).into_iter().cloned().collect()
    }

    fn blocking_dependents(&self, owner: &str) -> Vec<Arc<str>> {
        let graph = self.graph();
        let dependents = graph.dependents(owner).into_iter();
        dependents.filter(|node| node.blocks(owner)).map(|node| node.identity.uid.clone()).collect()
    }

    fn queue_delete(&self, uid: &str) {
        self.look_at(Key::Delete(uid.into()));
    }

    fn held(&self) -> MutexGuard<'_, Option<BTreeSet<Key>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues `key`, or holds it back until the graph is complete.
    fn look_at(&self, key: Key) {
        if let Some(held) = &mut *self.held() {
            held.insert(key);
        } else if let Some(queue) = self.queue.get() {
            queue.add(key);
        }
    }

    /// Brings the graph to a revision that holds everything written before this call.
    async fn catch_up(&self) -> Result<(), Error> {
        let informers = &self.context.informers;
        let failed = |error: master_client::Error| Error::Stale(format!("the graph of owners: {error}"));
        informers.catch_up(&self.context.client).await.map_err(failed)?;
        let revision = informers.newest_revision(&self.context.client).await.map_err(failed)?;
        informers.ask_progress();
        let watched: Vec<Arc<MetadataInformer>> = {
            let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
            watches.values().map(|watch| watch.informer.clone()).collect()
        };
        let all = watched.iter().map(|informer| informer.catch_up(revision, CATCH_UP_GRACE));
        futures::future::try_join_all(all).await.map_err(failed)?;
        Ok(())
    }

    /// Watches the kinds the API has now, and releases held keys once the graph holds all of them.
    async fn follow_kinds(self: &Arc<Self>) -> Result<(), Error> {
        let kinds = api_resources::discover(&self.context.client).await?;
        if self.watch_kinds(kinds) {
            self.held().get_or_insert_default();
        }
        if self.held().is_none() {
            return Ok(());
        }
        self.catch_up().await?;
        let held = self.held().take().unwrap_or_default();
        tracing::debug!(keys = held.len(), "the graph of owners is complete");
        for key in held {
            self.look_at(key);
        }
        Ok(())
    }

    fn forget(&self, uid: &str) {
        let work = self.graph().remove(uid);
        self.enqueue(work);
    }

    fn enqueue(&self, work: Work) {
        for uid in work.orphan {
            self.look_at(Key::Orphan(uid));
        }
        for uid in work.delete {
            self.look_at(Key::Delete(uid));
        }
    }

    fn on_change<K: Object>(&self, api_version: &Arc<str>, kind: &Arc<str>, delta: &Delta<'_, K>) {
        let replaced = match (delta.old, delta.new) {
            (Some(old), Some(new)) => old.meta().uid != new.meta().uid,
            (Some(_), None) => true,
            _ => false,
        };
        if let Some(old) = delta.old.filter(|_| replaced) {
            self.forget(uid(old.meta()));
        }
        let Some(new) = delta.new else { return };
        let meta = new.meta();
        let identity = Coordinates {
            api_version: api_version.clone(),
            kind: kind.clone(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: uid(meta).into(),
        };
        let work = self.graph().upsert(identity, meta);
        self.enqueue(work);
    }

    fn follow<K>(self: &Arc<Self>, informer: &Arc<Informer<K>>) -> HandlerGuard
    where
        K: Object + Resource<DynamicType = ()>,
    {
        let this = self.clone();
        let (api_version, kind) = (K::api_version(&()).as_ref().into(), K::kind(&()).as_ref().into());
        informer.add_handler(move |delta| this.on_change(&api_version, &kind, delta))
    }

    /// Starts watches of new kinds and stops those of removed kinds; true when any kind is new.
    fn watch_kinds(self: &Arc<Self>, kinds: Vec<ListableResource>) -> bool {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted: BTreeMap<String, &ListableResource> =
            kinds.iter().filter(|kind| needs_watch(kind)).map(|kind| (kind.full_name(), kind)).collect();
        watches.retain(|name, _| wanted.contains_key(name));
        let before = watches.len();
        for (name, kind) in wanted {
            watches.entry(name).or_insert_with(|| self.watch(kind));
        }
        let any_new = watches.len() > before;
        drop(watches);
        *self.kinds.lock().unwrap_or_else(PoisonError::into_inner) = kinds;
        any_new
    }

    fn watch(self: &Arc<Self>, kind: &ListableResource) -> MetadataWatch {
        let api: Api<DynamicObject> = Api::all_with(self.context.client.clone(), &kind.resource);
        let broken = self.context.informers.broken.clone();
        let informer = MetadataInformer::new(kind.full_name(), ListWatch::metadata(api), vec![], broken);
        let shutdown = self.context.shutdown.child_token();
        let this = Arc::downgrade(self);
        let (api_version, name) =
            (kind.resource.api_version.as_str().into(), kind.resource.kind.as_str().into());
        let guard = informer.add_handler(move |delta| {
            if let Some(this) = this.upgrade() {
                this.on_change(&api_version, &name, delta);
            }
        });
        let (running, stop) = (informer.clone(), shutdown.clone());
        tokio::spawn(async move { supervise("metadata-informer", || running.run(stop.clone())).await });
        MetadataWatch { informer, _guard: guard, shutdown }
    }
}

/// Kinds that the shared caches already watch.
const SHARED: [(&str, &str); 9] = [
    ("", "pods"),
    ("", "nodes"),
    ("", "namespaces"),
    ("", "services"),
    ("", "endpoints"),
    ("", "serviceaccounts"),
    ("apps", "replicasets"),
    ("apps", "deployments"),
    ("discovery.k8s.io", "endpointslices"),
];

/// Whether a kind needs a watch of its own. Events do not: they are many, and neither own objects nor are
/// owned.
fn needs_watch(kind: &ListableResource) -> bool {
    let resource = (kind.resource.group.as_str(), kind.resource.plural.as_str());
    kind.watchable && kind.deletable && kind.resource.plural != "events" && !SHARED.contains(&resource)
}

/// Wraps the collector in an `Arc`, since `reconcile` has only `&self` and watches need a reference of
/// their own.
pub(crate) struct GarbageCollectorController(Arc<GarbageCollector>);

impl GarbageCollectorController {
    pub fn new(context: Context) -> Self {
        Self(Arc::new(GarbageCollector::new(context)))
    }
}

#[async_trait]
impl Controller for GarbageCollectorController {
    type Key = Key;

    fn name(&self) -> &'static str {
        "garbage-collector"
    }

    fn workers(&self) -> usize {
        16
    }

    fn register(self: Arc<Self>, queue: &Arc<WorkQueue<Key>>) -> Vec<HandlerGuard> {
        let collector = &self.0;
        collector.queue.get_or_init(|| queue.clone());
        queue.add(Key::Kinds);
        let informers = &collector.context.informers;
        vec![
            // Owners before dependents: an owner that is not in the graph yet would be read live for each
            // dependent.
            collector.follow(&informers.namespaces),
            collector.follow(&informers.nodes),
            collector.follow(&informers.deployments),
            collector.follow(&informers.replica_sets),
            collector.follow(&informers.services),
            collector.follow(&informers.pods),
            collector.follow(&informers.endpoints),
            collector.follow(&informers.service_accounts),
            collector.follow(&informers.endpoint_slices),
        ]
    }

    async fn reconcile(&self, key: &Key) -> Result<Reconciled, Error> {
        match key {
            Key::Kinds => {
                self.0.follow_kinds().await?;
                return Ok(Reconciled::After(DISCOVERY));
            }
            Key::Delete(uid) => {
                let node = self.0.graph().get(uid).cloned();
                if let Some(node) = node.filter(|node| !node.virtual_) {
                    self.0.attempt_to_delete(&node).await?;
                }
            }
            Key::Orphan(uid) => {
                let node = self.0.graph().get(uid).cloned();
                if let Some(node) = node.filter(|node| node.orphaning) {
                    self.0.attempt_to_orphan(&node).await?;
                }
            }
        }
        Ok(Reconciled::Done)
    }
}
