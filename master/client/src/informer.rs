//! Lists the objects of one kind once and then watches them, into a [`Cache`]; every change is passed to
//! handlers in order, exactly once, with the old and the new object. Started by `informers.rs` and the
//! garbage collector.
//!
//! An object that does not decode does not stop the informer: it is entered in [`BrokenObjects`] and
//! skipped. Its earlier state stays in the cache, since handlers would take its removal for a deletion. A
//! handler that panics does not stop the informer either.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::WatchEvent;
use proto_decode::{Broken, BrokenObjects, Decoded};
use proto_env::supervise;
use tokio::sync::watch;
use tokio::task::coop;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, IndexFn};
use crate::list_watch::{WATCH_SECONDS, parse_revision};
use crate::{Error, ListWatch, Object, ObjectKey};

/// First pause after a failed list or watch; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// Longest pause between attempts: the server is on the same machine, so one request per second is cheap.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// One change of one object: no `old` means added, no `new` means deleted.
pub struct Delta<'a, K> {
    /// The object that the cache held before; `None` when it was added.
    pub old: Option<&'a Arc<K>>,
    /// The object that the cache holds now; `None` when it was deleted, with the last known state in `old`.
    pub new: Option<&'a Arc<K>>,
}

impl<'a, K> Delta<'a, K> {
    /// Returns the new object, or the last state of a deleted one.
    pub fn object(&self) -> Option<&'a Arc<K>> {
        self.new.or(self.old)
    }

    /// Returns both states, the old one first.
    pub fn states(&self) -> impl Iterator<Item = &'a Arc<K>> {
        self.old.into_iter().chain(self.new)
    }
}

type Handler<K> = Arc<dyn Fn(&Delta<'_, K>) + Send + Sync>;

/// Keeps a handler registered; dropping the guard removes the handler. Never drop it inside a handler.
#[must_use = "dropping the guard removes the handler"]
pub struct HandlerGuard(Box<dyn Fn() + Send + Sync>);

impl Drop for HandlerGuard {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A shared, warm cache of one kind and the stream of its changes.
pub struct Informer<K: Clone> {
    name: String,
    source: ListWatch<K>,
    cache: Cache<K>,
    broken: BrokenObjects,
    dispatch: Mutex<Dispatch<K>>,
    /// Held while a list is installed, which lets other tasks run in between, and while an event is
    /// installed.
    installing: tokio::sync::Mutex<()>,
    /// Revision up to which the cache holds every change; 0 before the first list.
    revision: watch::Sender<u64>,
}

/// Handlers and list state; locked while a change is applied, so that a new handler neither misses nor
/// repeats it.
struct Dispatch<K> {
    handlers: BTreeMap<u64, Handler<K>>,
    next_handler: u64,
    /// Revision of the last list: events up to it are already in the cache.
    floor: u64,
}

impl<K: Object> Informer<K> {
    /// Creates an informer of the resource `name`, which does nothing until [`Informer::run`]. Objects that
    /// do not decode are entered in `broken`.
    pub fn new(
        name: impl Into<String>,
        source: ListWatch<K>,
        indexers: Vec<(&'static str, IndexFn<K>)>,
        broken: BrokenObjects,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            source,
            cache: Cache::new(indexers),
            broken,
            installing: tokio::sync::Mutex::default(),
            dispatch: Mutex::new(Dispatch { handlers: BTreeMap::new(), next_handler: 0, floor: 0 }),
            revision: watch::Sender::new(0),
        })
    }

    /// Returns the cache of the objects as last seen.
    pub fn cache(&self) -> &Cache<K> {
        &self.cache
    }

    /// Whether the first list is in the cache.
    pub fn synced(&self) -> bool {
        *self.revision.borrow() > 0
    }

    /// Calls `handler` for every existing object, as an addition, and then for every change. Handlers are
    /// called in order, one change at a time; they must be quick and must not block.
    pub fn add_handler(
        self: &Arc<Self>,
        handler: impl Fn(&Delta<'_, K>) + Send + Sync + 'static,
    ) -> HandlerGuard {
        let mut dispatch = self.lock();
        let handler: Handler<K> = Arc::new(handler);
        for object in self.cache.list() {
            call(&handler, &Delta { old: None, new: Some(&object) });
        }
        let id = dispatch.next_handler;
        dispatch.next_handler += 1;
        dispatch.handlers.insert(id, handler);
        let informer: Weak<Self> = Arc::downgrade(self);
        HandlerGuard(Box::new(move || {
            if let Some(informer) = informer.upgrade() {
                informer.lock().handlers.remove(&id);
            }
        }))
    }

    /// Waits until the cache holds everything up to `revision`; after `grace` it lists instead of waiting
    /// longer.
    ///
    /// # Errors
    /// The list's error.
    pub async fn catch_up(&self, revision: u64, grace: Duration) -> Result<(), Error> {
        let mut seen = self.revision.subscribe();
        if tokio::time::timeout(grace, seen.wait_for(|seen| *seen >= revision)).await.is_ok() {
            return Ok(());
        }
        let (objects, listed) = self.source.list(true).await?;
        match self.replace(objects, listed).await {
            // The watch has overtaken the list meanwhile.
            Err(Error::Rewound { seen, .. }) if seen >= revision => Ok(()),
            result => result,
        }
    }

    /// Lists and watches until `shutdown`.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut backoff = BACKOFF_MIN;
        let mut relist = true;
        loop {
            let step = async {
                if relist {
                    let (objects, revision) = self.source.list(false).await?;
                    self.replace(objects, revision).await?;
                    relist = false;
                }
                self.watch().await
            };
            let result = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                result = step => result,
            };
            match result {
                Ok(true) => {
                    backoff = BACKOFF_MIN;
                    continue;
                }
                Ok(false) => {}
                Err(error) if is_expired(&error) => {
                    tracing::debug!(kind = self.name, "watch expired; listing again");
                    relist = true;
                }
                Err(error) => tracing::debug!(kind = self.name, %error, "list or watch failed; trying again"),
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Runs one watch until it ends; true when it delivered any event.
    async fn watch(&self) -> Result<bool, Error> {
        let from = *self.revision.borrow();
        let mut events = self.source.watch(from).await?;
        let mut progressed = false;
        let idle = Duration::from_secs(u64::from(WATCH_SECONDS) + 10);
        loop {
            let Ok(next) = tokio::time::timeout(idle, events.next()).await else { return Ok(progressed) };
            match next {
                None => return Ok(progressed),
                Some(Ok(WatchEvent::Error(status))) => return Err(Error::Api(kube::Error::Api(status))),
                Some(Err(error)) => return Err(error.into()),
                Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                    let _installing = self.installing.lock().await;
                    match object {
                        Decoded::Object(object) => self.apply(object)?,
                        Decoded::Broken(broken) => self.skip(&broken)?,
                    }
                }
                Some(Ok(WatchEvent::Deleted(object))) => {
                    let _installing = self.installing.lock().await;
                    self.delete(object.meta())?;
                }
                Some(Ok(WatchEvent::Bookmark(bookmark))) => {
                    let revision =
                        parse_revision("bookmark", Some(bookmark.metadata.resource_version.as_str()))?;
                    self.advance(revision);
                }
            }
            progressed = true;
        }
    }

    fn apply(&self, object: K) -> Result<(), Error> {
        let revision = revision_of(object.meta())?;
        let key = ObjectKey::of(&object);
        let dispatch = self.lock();
        let old = self.cache.get(&key);
        let outdated = |old: &Arc<K>| known_revision(old.meta()) < revision;
        if revision > dispatch.floor && old.as_ref().is_none_or(outdated) {
            self.install(&dispatch, key.clone(), old.as_ref(), object);
        }
        drop(dispatch);
        self.broken.remove(&self.name, &key.namespace, &key.name);
        self.advance(revision);
        Ok(())
    }

    /// Puts an object into the cache in place of `old` and calls the handlers.
    fn install(&self, dispatch: &Dispatch<K>, key: ObjectKey, old: Option<&Arc<K>>, mut object: K) {
        // No controller reads managedFields, which are often half of the object.
        object.meta_mut().managed_fields = None;
        let object = Arc::new(object);
        self.cache.insert(key, object.clone());
        dispatch.call(&Delta { old, new: Some(&object) });
    }

    /// Skips an object that was added or changed and does not decode.
    fn skip(&self, broken: &Broken) -> Result<(), Error> {
        self.broken.add(&self.name, broken);
        self.advance(revision_of(&broken.meta)?);
        Ok(())
    }

    fn delete(&self, meta: &ObjectMeta) -> Result<(), Error> {
        let revision = revision_of(meta)?;
        let key = ObjectKey::of_meta(meta);
        let dispatch = self.lock();
        let outdated = |old: &Arc<K>| known_revision(old.meta()) <= revision;
        if revision > dispatch.floor
            && self.cache.get(&key).as_ref().is_some_and(outdated)
            && let Some(old) = self.cache.remove(&key)
        {
            dispatch.call(&Delta { old: Some(&old), new: None });
        }
        drop(dispatch);
        self.broken.remove(&self.name, &key.namespace, &key.name);
        self.advance(revision);
        Ok(())
    }

    /// Installs a list: objects missing from it were deleted, those that differ were changed. Lets other
    /// tasks run in between; events wait until it is done. Safe to cancel: what is installed by then is
    /// newer than what was there.
    async fn replace(&self, objects: Vec<Decoded<K>>, listed: u64) -> Result<(), Error> {
        let _installing = self.installing.lock().await;
        let seen = *self.revision.borrow();
        if listed < seen {
            return Err(Error::Rewound { listed, seen });
        }
        let mut present = BTreeSet::new();
        for object in objects {
            coop::consume_budget().await;
            let key = ObjectKey::of_meta(object.meta());
            present.insert(key.clone());
            match object {
                Decoded::Object(object) => {
                    let dispatch = self.lock();
                    let old = self.cache.get(&key);
                    let same = |old: &Arc<K>| old.meta().resource_version == object.meta().resource_version;
                    if !old.as_ref().is_some_and(same) {
                        self.install(&dispatch, key.clone(), old.as_ref(), object);
                    }
                    drop(dispatch);
                    self.broken.remove(&self.name, &key.namespace, &key.name);
                }
                Decoded::Broken(broken) => self.broken.add(&self.name, &broken),
            }
        }
        for key in self.cache.keys() {
            coop::consume_budget().await;
            if present.contains(&key) {
                continue;
            }
            let dispatch = self.lock();
            if let Some(old) = self.cache.remove(&key) {
                dispatch.call(&Delta { old: Some(&old), new: None });
            }
        }
        self.broken.retain(&self.name, |namespace, name| present.contains(&ObjectKey::new(namespace, name)));
        self.lock().floor = listed;
        self.advance(listed);
        Ok(())
    }

    fn advance(&self, revision: u64) {
        self.revision.send_if_modified(|seen| {
            let newer = revision > *seen;
            *seen = revision.max(*seen);
            newer
        });
    }

    fn lock(&self) -> MutexGuard<'_, Dispatch<K>> {
        self.dispatch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Dispatch<K> {
    fn call(&self, delta: &Delta<'_, K>) {
        for handler in self.handlers.values() {
            call(handler, delta);
        }
    }
}

/// Calls a handler. A handler that panics misses this change; other handlers and the informer go on.
fn call<K>(handler: &Handler<K>, delta: &Delta<'_, K>) {
    drop(supervise::catch_call("informer-handler", || handler(delta)));
}

fn revision_of(meta: &ObjectMeta) -> Result<u64, Error> {
    parse_revision("object", meta.resource_version.as_deref())
}

/// Returns the revision of an object; 0 when its source gives none.
fn known_revision(meta: &ObjectMeta) -> u64 {
    revision_of(meta).unwrap_or(0)
}

/// Whether the watch cannot be resumed and a new list is needed.
fn is_expired(error: &Error) -> bool {
    match error {
        Error::Api(kube::Error::Api(status)) => status.code == 410 || status.reason == "Expired",
        Error::Revision { .. } | Error::Rewound { .. } => true,
        _ => false,
    }
}
