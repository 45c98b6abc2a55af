//! Reading the store: one object, ranges (also at an earlier revision), watches
//! and digests. Nothing here waits for the disk.

use std::collections::btree_map;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::{Store, lock, read};
use crate::snapshot::digest_object;
use crate::watch::Watch;
use crate::{Checkpoint, Object, Revision};

/// The revision asked for is no longer known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("revision {asked} is compacted; the oldest known is {oldest}")]
pub struct Compacted {
    /// What was asked for.
    pub asked: Revision,
    /// What is known at least.
    pub oldest: Revision,
}

/// A revision was not reached in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("revision {asked} is not reached; this replica is at {reached}")]
pub struct NotReached {
    /// What was waited for.
    pub asked: Revision,
    /// How far this replica is.
    pub reached: Revision,
}

/// A part of a range.
#[derive(Debug, Clone)]
pub struct Page {
    /// In the order of keys.
    pub objects: Vec<Arc<Object>>,
    /// The revision of the whole range.
    pub revision: Revision,
    /// Whether objects follow.
    pub more: bool,
    /// How many.
    pub remaining: u64,
}

/// How large a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// How many objects live.
    pub objects: u64,
    /// Roughly their bytes.
    pub object_bytes: u64,
    /// Bytes of the object store on disk.
    pub disk_bytes: u64,
    /// Open watches.
    pub watches: u64,
    /// The revision reached.
    pub revision: Revision,
    /// History up to here is forgotten.
    pub compacted: Revision,
}

/// A digest of all objects at one revision; the same on every replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    /// The revision.
    pub revision: Revision,
    /// blake3 over keys, values and revisions, in the order of keys.
    pub hash: [u8; 32],
    /// How many objects.
    pub objects: u64,
}

impl Store {
    /// The revision this replica has reached.
    pub fn revision(&self) -> Revision {
        *self.reached.borrow()
    }

    /// History up to this revision may be forgotten.
    pub fn compacted(&self) -> Revision {
        read(&self.history).compacted()
    }

    /// How large this replica is. Asks the file system.
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

    /// The fingerprint after the last log entry up to `index` that is remembered;
    /// `None` when this replica remembers only later ones.
    pub fn checkpoint(&self, index: u64) -> Option<Checkpoint> {
        let live = read(&self.live);
        let after = live.checkpoints.partition_point(|checkpoint| checkpoint.index <= index);
        after.checked_sub(1).and_then(|last| live.checkpoints.get(last)).copied()
    }

    /// How many objects live.
    pub fn len(&self) -> usize {
        read(&self.live).objects.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The object with this key.
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        read(&self.live).objects.get(key).cloned()
    }

    /// Objects whose keys begin with `prefix`, after the key `start_after`, at
    /// most `limit` (0: all), now or as they were at an earlier revision. A
    /// later revision than the present one is read as the present: wait for it
    /// first ([`Store::wait_for`]).
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
        let in_prefix = |key: &Arc<str>| key.starts_with(prefix);
        let now = live.objects.range::<str, _>((from, Bound::Unbounded));
        let now = now.take_while(|(key, _)| in_prefix(key));
        let mut page = Page { objects: Vec::new(), revision, more: false, remaining: 0 };
        let mut take = |object: &Arc<Object>| {
            if page.objects.len() < limit {
                page.objects.push(object.clone());
            } else {
                page.remaining += 1;
            }
        };
        if revision == live.revision {
            now.for_each(|(_, object)| take(object));
        } else {
            let history = read(&self.history);
            let forgotten = || Compacted { asked: revision, oldest: history.compacted() };
            let undo = history.undo(prefix, revision).ok_or_else(forgotten)?;
            let then = undo.range::<str, _>((from, Bound::Unbounded));
            merge(now, then, &undo, take);
        }
        page.more = page.remaining > 0;
        Ok(page)
    }

    /// All events of keys with `prefix` after the revision `after`, then live
    /// ones; in order, each once.
    pub fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, Compacted> {
        Watch::start(&self.history, prefix, after)
            .ok_or_else(|| Compacted { asked: after, oldest: self.compacted() })
    }

    /// Has every watch that has moved on since its last report say so at once, without waiting for its interval.
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

    /// The digest at a revision (`None`: now). Reads every object; call it from
    /// where blocking for a while is fine.
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

/// Walks the objects of now and of then together in the order of keys; where a
/// key is in `undo`, only what it was then counts.
fn merge<'a>(
    now: impl Iterator<Item = (&'a Arc<str>, &'a Arc<Object>)>,
    then: btree_map::Range<'a, Arc<str>, Option<Arc<Object>>>,
    undo: &Undo,
    mut take: impl FnMut(&Arc<Object>),
) {
    let mut then = then.peekable();
    for (key, object) in now {
        while let Some((_, object)) = then.next_if(|(earlier, _)| *earlier < key) {
            object.iter().for_each(&mut take);
        }
        match undo.get(key) {
            Some(object) => {
                object.iter().for_each(&mut take);
                then.next_if(|(same, _)| *same == key);
            }
            None => take(object),
        }
    }
    then.for_each(|(_, object)| object.iter().for_each(&mut take));
}
