//! Reads of the store: single objects, ranges (also at an earlier revision), watches and digests. No read
//! waits for the disk.

use std::collections::btree_map;
use std::ops::Bound;
use std::sync::{Arc, TryLockError};
use std::time::Duration;

use super::live_objects::end_of_prefix;
use super::{Store, lock, read};
use crate::snapshot::digest_object;
use crate::watch::Watch;
use crate::{Checkpoint, Object, Revision};

/// Error: the history no longer reaches back to the requested revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("revision {asked} is compacted; the oldest known is {oldest}")]
pub struct Compacted {
    /// The requested revision.
    pub asked: Revision,
    /// The oldest revision that is still known.
    pub oldest: Revision,
}

/// Error: the replica did not reach a revision in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("revision {asked} is not reached; this replica is at {reached}")]
pub struct NotReached {
    /// The revision that was waited for.
    pub asked: Revision,
    /// The revision that this replica has reached.
    pub reached: Revision,
}

/// One page of a range.
#[derive(Debug, Clone)]
pub struct Page {
    /// The objects in the order of their keys.
    pub objects: Vec<Arc<Object>>,
    /// The revision at which the whole range is read.
    pub revision: Revision,
    /// Whether more objects follow this page.
    pub more: bool,
    /// Number of objects that follow this page.
    pub remaining: u64,
}

/// Sizes of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Number of live objects.
    pub objects: u64,
    /// Approximate bytes of the live objects.
    pub object_bytes: u64,
    /// Bytes of the object store on disk.
    pub disk_bytes: u64,
    /// Number of open watches.
    pub watches: u64,
    /// The revision that this replica has reached.
    pub revision: Revision,
    /// The history up to this revision is forgotten.
    pub compacted: Revision,
}

/// A digest of all objects at one revision; the same on every replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    /// The revision of the objects.
    pub revision: Revision,
    /// blake3 over keys, values and revisions, in the order of keys.
    pub hash: [u8; 32],
    /// Number of objects.
    pub objects: u64,
}

impl Store {
    /// Returns the revision that this replica has reached.
    pub fn revision(&self) -> Revision {
        *self.reached.borrow()
    }

    /// Returns whether an apply would have to wait now: for readers of the objects or of the history, or for
    /// the backend.
    pub fn is_busy(&self) -> bool {
        let backend_waits = match self.backend.try_lock() {
            Ok(current) => current.is_full(),
            Err(TryLockError::Poisoned(current)) => current.into_inner().is_full(),
            Err(TryLockError::WouldBlock) => true,
        };
        backend_waits
            || matches!(self.live.try_write(), Err(TryLockError::WouldBlock))
            || matches!(self.history.try_write(), Err(TryLockError::WouldBlock))
    }

    /// Returns the revision up to which history may be forgotten.
    pub fn compacted(&self) -> Revision {
        read(&self.history).compacted()
    }

    /// Measures this replica; asks the file system for its size on disk.
    pub fn sizes(&self) -> Sizes {
        let backend = lock(&self.backend).backend.clone();
        let disk_bytes = backend.disk_bytes();
        let live = read(&self.live);
        let history = read(&self.history);
        Sizes {
            objects: live.objects.len() as u64,
            object_bytes: live.object_bytes,
            disk_bytes,
            watches: history.watches(),
            revision: live.revision,
            compacted: history.compacted(),
        }
    }

    /// Returns the fingerprint after the last remembered log entry up to `index`; `None` if this replica
    /// remembers only later ones.
    pub fn checkpoint(&self, index: u64) -> Option<Checkpoint> {
        let live = read(&self.live);
        let after = live.checkpoints.partition_point(|checkpoint| checkpoint.index <= index);
        after.checked_sub(1).and_then(|last| live.checkpoints.get(last)).copied()
    }

    /// Returns the number of live objects.
    pub fn len(&self) -> usize {
        read(&self.live).objects.len()
    }

    /// Returns whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the object with this key.
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        read(&self.live).objects.get(key).cloned()
    }

    /// Returns at most `limit` objects (0: all) whose keys begin with `prefix` and follow the key
    /// `start_after`, now or at an earlier revision. A revision later than the present one is read as the
    /// present: call [`Store::wait_for`] first.
    pub fn range(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, Compacted> {
        let live = read(&self.live);
        let revision = at.map_or(live.revision, |at| at.min(live.revision));
        let limit = if limit == 0 { usize::MAX } else { limit };
        let from = match start_after {
            Some(key) if key >= prefix => Bound::Excluded(key),
            _ => Bound::Included(prefix),
        };
        let end = end_of_prefix(prefix);
        let before_end = |key: &str| end.as_deref().is_none_or(|end| key < end);
        let now = live.objects.range::<str, _>((from, Bound::Unbounded));
        let now = now.take_while(|(key, _)| before_end(key));
        // Counts the objects after the last one taken, without a walk over them.
        let left = |last: &Object| live.objects.count(Bound::Excluded(&*last.key), end.as_deref());
        let (objects, remaining) = if revision == live.revision {
            let objects: Vec<_> = now.take(limit).map(|(_, object)| object.clone()).collect();
            let remaining = objects.last().filter(|_| objects.len() == limit).map_or(0, |last| left(last));
            (objects, remaining)
        } else {
            let history = read(&self.history);
            let forgotten = || Compacted { asked: revision, oldest: history.compacted() };
            let undo = history.undo(prefix, revision).ok_or_else(forgotten)?;
            let then = undo.range::<str, _>((from, Bound::Unbounded));
            let objects = merge(now, then, &undo, limit);
            let remaining = objects.last().filter(|_| objects.len() == limit).map_or(0, |last| {
                let changed = undo.range::<str, _>((Bound::Excluded(&*last.key), Bound::Unbounded));
                let (gone, come) = changed.fold((0, 0), |(gone, come), (key, then)| {
                    let is_now = live.objects.contains_key(key);
                    (
                        gone + usize::from(then.is_some() && !is_now),
                        come + usize::from(then.is_none() && is_now),
                    )
                });
                (left(last) + gone).saturating_sub(come)
            });
            (objects, remaining)
        };
        Ok(Page { objects, revision, more: remaining > 0, remaining: remaining as u64 })
    }

    /// Watches the keys with `prefix`: all events after the revision `after`, then live ones, in order and
    /// each once.
    pub fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, Compacted> {
        Watch::start(&self.history, prefix, after)
            .ok_or_else(|| Compacted { asked: after, oldest: self.compacted() })
    }

    /// Asks every watch that has advanced since its last report to report at once, before its interval
    /// ends.
    pub fn ask_progress(&self) {
        read(&self.history).ask_progress();
    }

    /// Waits until this replica has reached `revision`.
    pub async fn wait_for(&self, revision: Revision, deadline: Duration) -> Result<(), NotReached> {
        let mut reached = self.reached.subscribe();
        let wait = reached.wait_for(|reached| *reached >= revision);
        match tokio::time::timeout(deadline, wait).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(NotReached { asked: revision, reached: self.revision() }),
        }
    }

    /// Computes the digest at a revision (`None`: now). Reads every object, so call it where blocking is
    /// fine.
    pub fn digest(&self, at: Option<Revision>) -> Result<Digest, Compacted> {
        let page = self.range("", None, 0, at)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&page.revision.to_le_bytes());
        page.objects.iter().for_each(|object| digest_object(&mut hasher, object));
        let objects = page.objects.len() as u64;
        Ok(Digest { revision: page.revision, hash: *hasher.finalize().as_bytes(), objects })
    }
}

type Undo = std::collections::BTreeMap<Arc<str>, Option<Arc<Object>>>;

/// Returns the first `limit` objects at an earlier revision by merging the present objects and `undo` in
/// the order of keys; a key in `undo` has only its earlier value.
fn merge<'a>(
    now: impl Iterator<Item = (&'a Arc<str>, &'a Arc<Object>)>,
    then: btree_map::Range<'a, Arc<str>, Option<Arc<Object>>>,
    undo: &Undo,
    limit: usize,
) -> Vec<Arc<Object>> {
    let mut now = now.filter(|(key, _)| !undo.contains_key(*key)).peekable();
    let mut then = then.filter_map(|(key, object)| Some((key, object.as_ref()?))).peekable();
    let mut objects = Vec::new();
    while objects.len() < limit {
        let next = match (now.peek(), then.peek()) {
            (Some((key, _)), Some((earlier, _))) if earlier < key => then.next(),
            (Some(_), _) => now.next(),
            (None, _) => then.next(),
        };
        let Some((_, object)) = next else { break };
        objects.push(object.clone());
    }
    objects
}
