//! The store: live objects and recent history in memory, and the same state on disk. Readers
//! (`master/apiserver`) share it with the one writer, the state machine of `consensus`, which applies
//! entries in log order.

mod apply;
#[cfg(test)]
mod defence_tests;
mod divergence;
#[cfg(test)]
mod history_tests;
mod live_objects;
mod read;
pub(crate) mod records;
mod rewrite;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use proto_env::Env;
use proto_env::planted::{self, Bug};
use tokio::sync::watch as signal;

use live_objects::LiveObjects;

pub use apply::{Applied, Entry};
pub use read::{Compacted, Digest, NotReached, Page, Sizes};
pub use rewrite::Rewritten;

use crate::backend::memory::MemoryHome;
use crate::backend::sled::SledHome;
use crate::backend::{Backend, Batch, Home, Table};
use crate::crypto::{DataKey, Sealer};
use crate::recent_outcomes::RecentOutcomes;
use crate::snapshot::{Adopted, SnapshotView, Staged, Staging};
use crate::watch::History;
use crate::{Checkpoint, Error, Fingerprint, Object, Result, Revision};

/// Number of log entries whose fingerprints are remembered: a replica that is this far behind another one
/// can still be compared once it has caught up.
const CHECKPOINTS: usize = 8_192;

/// Number of periods into which the age of history is divided.
const PERIODS: u32 = 30;
/// Number of periods for which history counts as recent.
const RECENT_PERIODS: usize = 4;

/// Limits of the history that is kept for watches and continued lists.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Least age of forgotten history, if the other limits allow it ([`Store::compact_periodically`]).
    pub history: Duration,
    /// Maximum number of events.
    pub history_events: usize,
    /// Maximum bytes of events and of replaced and deleted objects, counted approximately. Only applied
    /// entries are counted, so that every replica forgets the same history.
    pub history_bytes: usize,
    /// The same for history that is older than a few periods of [`Store::compact_periodically`] (40 s by
    /// default): what a load leaves behind goes soon after its end.
    pub old_history_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            history: Duration::from_secs(5 * 60),
            history_events: 200_000,
            history_bytes: 64 * 1024 * 1024,
            old_history_bytes: 16 * 1024 * 1024,
        }
    }
}

/// The live objects and the other data that an apply reads and writes.
pub(crate) struct Live {
    pub(crate) objects: LiveObjects,
    pub(crate) revision: Revision,
    pub(crate) recent: RecentOutcomes,
    pub(crate) applied: Vec<u8>,
    /// The index of the last log entry applied.
    index: u64,
    /// The fingerprint of objects and outcomes.
    fingerprint: Fingerprint,
    /// The fingerprints after each of the last log entries.
    checkpoints: VecDeque<Checkpoint>,
    /// Approximate bytes of all objects.
    object_bytes: u64,
}

/// The backend that the state is written to.
struct CurrentBackend {
    backend: Arc<dyn Backend>,
    /// A copy that takes the same batches while the state is rewritten; `None` otherwise.
    mirror: Option<Arc<dyn Backend>>,
}

/// One replica of the replicated state.
pub struct Store {
    /// Locked before `history` when both are locked.
    live: RwLock<Live>,
    history: Arc<RwLock<History>>,
    /// Locked by the writer for as long as a change of the state takes.
    backend: Mutex<CurrentBackend>,
    home: Arc<dyn Home>,
    reached: signal::Sender<Revision>,
    limits: Limits,
    /// Bytes of the database after its last rewrite; 0: this process has not rewritten it.
    rewritten_bytes: AtomicU64,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

// === impl Store ===

impl Store {
    /// Opens the store in `directory` (created if missing), encrypted with `key`.
    pub fn open(directory: &Path, key: &DataKey, env: &Env, limits: Limits) -> Result<Arc<Self>> {
        let sealer = Sealer::new(key, "objects", env.random.clone());
        Self::open_home(Arc::new(SledHome::new(directory, sealer, env.disk.clone())?), limits)
    }

    /// Makes a store in memory, for tests and the simulation.
    pub fn in_memory(limits: Limits) -> Result<Arc<Self>> {
        Self::open_home(Arc::new(MemoryHome::default()), limits)
    }

    /// Opens the current state of a home.
    pub fn open_home(home: Arc<dyn Home>, limits: Limits) -> Result<Arc<Self>> {
        let (backend, live) = unless_it_panics(|| {
            let backend = home.open()?;
            let live = load(backend.as_ref())?;
            Ok((backend, live))
        })?;
        let history = History::new(live.revision, limits.history_events, limits.history_bytes);
        Ok(Arc::new(Self {
            reached: signal::Sender::new(live.revision),
            live: RwLock::new(live),
            history: Arc::new(RwLock::new(history)),
            backend: Mutex::new(CurrentBackend { backend, mirror: None }),
            home,
            limits,
            rewritten_bytes: AtomicU64::new(0),
        }))
    }

    /// Returns what the consensus stored with the last [`Store::apply`]; empty at first.
    pub fn applied(&self) -> Vec<u8> {
        read(&self.live).applied.clone()
    }

    /// Makes everything applied durable; called before the log that could replay it is purged.
    pub fn sync(&self) -> Result<()> {
        // The lock is not held while the disk syncs: batches written meanwhile may be synced too, which
        // does no harm.
        let backend = lock(&self.backend).backend.clone();
        backend.sync()
    }

    /// Takes a view of the whole present state.
    pub fn view(&self) -> SnapshotView {
        let live = read(&self.live);
        SnapshotView {
            revision: live.revision,
            forgotten: live.recent.forgotten(),
            applied: live.applied.clone(),
            objects: live.objects.values().cloned().collect(),
            // Planted: snapshots lack the outcomes of recent proposals.
            recent: if planted::is(Bug::OutcomesForgotten) { Vec::new() } else { live.recent.records() },
            index: live.index,
            fingerprint: live.fingerprint,
        }
    }

    /// Begins to receive a snapshot.
    pub fn stage(&self) -> Result<Staging> {
        Staging::new(self.home.clone())
    }

    /// Replaces the whole state by a received one. All watches end as lagged.
    pub fn install(&self, staged: Staged) -> Result<()> {
        let mut backend = lock(&self.backend);
        let Adopted { backend: adopted, objects, recent, state } = staged.staging.adopt()?;
        let installed = Live::new(objects, recent, state);
        let revision = installed.revision;
        // A rewrite in progress notices that its copy belongs to the replaced state.
        std::mem::replace(&mut *backend, CurrentBackend { backend: adopted, mirror: None }).backend.retire();
        let replaced = {
            let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
            let mut history = self.history.write().unwrap_or_else(PoisonError::into_inner);
            history.reset(revision);
            std::mem::replace(&mut *live, installed)
        };
        self.reached.send_replace(revision);
        drop(backend);
        drop(replaced);
        Ok(())
    }

    /// Ends all watches as lagged, because the events they would deliver cannot be trusted.
    pub fn end_watches(&self) {
        let revision = read(&self.live).revision;
        self.history.write().unwrap_or_else(PoisonError::into_inner).reset(revision);
    }

    /// Forgets the history up to a revision.
    pub fn compact(&self, revision: Revision) {
        self.history.write().unwrap_or_else(PoisonError::into_inner).compact(revision);
    }

    /// Forgets history older than the limit, and old history beyond its bytes, for as long as the future is
    /// polled.
    pub async fn compact_periodically(self: Arc<Self>) {
        let period = self.limits.history / PERIODS;
        let mut marks = std::collections::VecDeque::from([self.revision()]);
        loop {
            tokio::time::sleep(period).await;
            marks.push_back(self.revision());
            let mut history = self.history.write().unwrap_or_else(PoisonError::into_inner);
            if marks.len() > PERIODS as usize
                && let Some(old) = marks.pop_front()
            {
                history.compact(old);
            }
            let aged = marks.len().checked_sub(1 + RECENT_PERIODS).and_then(|at| marks.get(at));
            if let Some(aged) = aged {
                history.trim(*aged, self.limits.old_history_bytes);
            }
        }
    }
}

impl Live {
    fn new(
        objects: BTreeMap<Arc<str>, Arc<Object>>,
        recent: RecentOutcomes,
        state: records::StateRecord,
    ) -> Self {
        let object_bytes = objects.values().map(|object| object.size_bytes() as u64).sum();
        let mut live = Self {
            objects: LiveObjects::new(objects),
            revision: state.revision,
            recent,
            applied: state.applied,
            index: state.index,
            fingerprint: state.fingerprint,
            checkpoints: VecDeque::new(),
            object_bytes,
        };
        live.checkpoints.push_back(live.checkpoint());
        live
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint { index: self.index, revision: self.revision, fingerprint: self.fingerprint }
    }

    /// Returns the state that is stored beside objects and outcomes.
    fn state(&self) -> records::StateRecord {
        records::StateRecord {
            revision: self.revision,
            forgotten: self.recent.forgotten(),
            applied: self.applied.clone(),
            index: self.index,
            fingerprint: self.fingerprint,
        }
    }
}

impl CurrentBackend {
    /// Returns whether a write would have to wait.
    fn is_full(&self) -> bool {
        self.backend.is_full() || self.mirror.as_ref().is_some_and(|mirror| mirror.is_full())
    }

    /// Writes a batch; gives up the mirror if it cannot be written.
    fn write(&mut self, batch: Batch) -> Result<()> {
        if let Some(mirror) = &self.mirror
            && let Err(error) = mirror.write(batch.clone())
        {
            tracing::warn!(%error, "rewriting the objects is given up");
            self.mirror = None;
        }
        self.backend.write(batch)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.history.write().unwrap_or_else(PoisonError::into_inner).stop();
    }
}

/// Turns a panic into an error: sled panics on some damage instead of reporting it.
fn unless_it_panics<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        let first = text.lines().next().unwrap_or_default();
        Err(Error::Damaged { what: "object store", reason: format!("its database cannot be read: {first}") })
    })
}

fn load(backend: &dyn Backend) -> Result<Live> {
    let mut objects: BTreeMap<Arc<str>, Arc<Object>> = BTreeMap::new();
    let mut recents = BTreeMap::new();
    let mut state = records::StateRecord::default();
    let mut found = Fingerprint::default();
    backend.load(&mut |table, key, value| {
        match table {
            Table::Objects => {
                let object = records::object(key, &value)?;
                found.add_object(&object);
                objects.insert(object.key.clone(), Arc::new(object));
            }
            Table::Recent => {
                let (index, outcomes) = records::recent(key, &value)?;
                found.add_outcomes(index, &outcomes)?;
                recents.insert(index, outcomes);
            }
            Table::Meta => state = records::state(&value)?,
        }
        Ok(())
    })?;
    // Every record could be decrypted, so each was written by this store. The fingerprint shows whether any
    // is missing or old.
    if found != state.fingerprint {
        return Err(Error::Damaged {
            what: "object store",
            reason: "its records do not add up to what was written: some are missing or old".to_owned(),
        });
    }
    // Planted: outcomes, the newest change or the revision itself do not outlive a restart.
    if planted::is(Bug::OutcomesForgotten) {
        recents.clear();
    } else if planted::is(Bug::AppliedAheadOfData) {
        objects.retain(|_, object| object.mod_revision != state.revision);
    } else if planted::is(Bug::RestartRewindsRevision) {
        state.revision = objects.values().map(|object| object.mod_revision).max().unwrap_or(0);
    }
    let mut recent = RecentOutcomes::with_forgotten(state.forgotten);
    for (index, outcomes) in recents {
        recent.restore(index, outcomes);
    }
    Ok(Live::new(objects, recent, state))
}
