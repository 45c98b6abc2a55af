//! openraft's state machine on top of the store: decodes committed entries, applies them in batches,
//! answers the waiting proposals, and makes and installs snapshots.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{Stream, TryStreamExt};
use openraft::entry::RaftEntry as _;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot};
use proto_env::Blocking;
use proto_env::planted::{self, Bug};
use storage::codec::{decode, encode};
use storage::{Entry, Store};
use tokio::sync::watch;

use crate::raft_types::{
    Content, EntryResults, LogId, SnapshotData, SnapshotMeta, StoredMembership, TypeConfig,
};

/// Maximum number and bytes of entries applied in one write to the backend (or one larger entry).
const APPLY_ENTRIES: usize = 64;
const APPLY_BYTES: usize = 4 * 1024 * 1024;

pub(crate) type RaftSnapshot = Snapshot<
    openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>,
    u64,
    crate::MasterAddress,
    SnapshotData,
>;

/// The data that the consensus stores beside the state.
type AppliedState = (Option<LogId>, StoredMembership);

/// The state machine of one master.
pub struct StateMachine {
    store: Arc<Store>,
    applied: SharedApplied,
    durable: Arc<AtomicU64>,
    blocking: Blocking,
}

/// The last applied entry. Its lock is held while the store changes: by the state machine, or by the
/// rebuild of a diverged replica (`rebuild.rs`).
pub(crate) struct Applied {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: StoredMembership,
    /// The index of `last`, for tasks that wait for it.
    pub(crate) index: watch::Sender<u64>,
}

pub(crate) type SharedApplied = Arc<tokio::sync::Mutex<Applied>>;

/// Hands out a snapshot once the store is durable up to it.
pub struct SnapshotBuilder {
    store: Arc<Store>,
    durable: Arc<AtomicU64>,
    blocking: Blocking,
}

fn other(error: storage::Error) -> io::Error {
    io::Error::other(error)
}

pub(crate) fn decode_applied(bytes: &[u8]) -> storage::Result<AppliedState> {
    if bytes.is_empty() {
        return Ok(Default::default());
    }
    decode("applied state", bytes)
}

impl StateMachine {
    /// Makes the state machine of `store`. `durable` is the log index up to which the store is known to be
    /// durable.
    pub(crate) fn new(
        store: Arc<Store>,
        durable: Arc<AtomicU64>,
        blocking: Blocking,
    ) -> storage::Result<Self> {
        let (last, membership) = decode_applied(&store.applied())?;
        let index = watch::Sender::new(last.map_or(0, |last| last.index));
        let applied = Arc::new(tokio::sync::Mutex::new(Applied { last, membership, index }));
        Ok(Self { store, applied, durable, blocking })
    }

    /// Watches the index of the last applied entry. Must be called before the state machine runs.
    pub(crate) fn applied_index(&self) -> watch::Receiver<u64> {
        self.applied.try_lock().map_or_else(|_| watch::channel(0).1, |applied| applied.index.subscribe())
    }

    /// Returns the shared record of the last applied entry.
    pub(crate) fn shared(&self) -> SharedApplied {
        self.applied.clone()
    }

    async fn apply_batch(&mut self, mut batch: Vec<EntryResponder<TypeConfig>>) -> storage::Result<()> {
        let mut applied = self.applied.lock().await;
        // A rebuild may have replaced the state by one with these entries already. Nobody waits for them
        // here, because a replica that is rebuilt does not lead.
        batch.retain(|(entry, _)| applied.last.is_none_or(|last| entry.log_id().index > last.index));
        if batch.is_empty() {
            return Ok(());
        }
        let mut entries = Vec::with_capacity(batch.len());
        let mut responders = Vec::with_capacity(batch.len());
        for (entry, responder) in batch {
            let log_id = entry.log_id();
            let mut raise = 0;
            let commands = match &entry.payload {
                EntryPayload::Normal(proposal) => match proposal.decode()? {
                    Content::Commands(commands) => commands,
                    Content::NewNodeId => Vec::new(),
                    Content::Recovered(by) => {
                        raise = by;
                        Vec::new()
                    }
                },
                EntryPayload::Membership(membership) => {
                    applied.membership = StoredMembership::new(Some(log_id), membership.clone());
                    Vec::new()
                }
                EntryPayload::Blank => Vec::new(),
            };
            entries.push(Entry { index: log_id.index, term: log_id.leader_id.term, commands, raise });
            responders.push(responder);
            applied.last = Some(log_id);
        }
        let stored = encode("applied state", &(applied.last, &applied.membership))?;
        let apply = || self.store.apply(entries, stored);
        // A long list may lock the objects; openraft's other tasks must go on meanwhile.
        let results = if self.store.is_busy() { self.blocking.in_place(apply) } else { apply() }?;
        applied.index.send_replace(applied.last.map_or(0, |last| last.index));
        for (results, responder) in results.into_iter().zip(responders) {
            if let Some(responder) = responder {
                responder.send(EntryResults { results });
            }
        }
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<AppliedState> {
        let applied = self.applied.lock().await;
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some((entry, responder)) = entries.try_next().await? {
            if let EntryPayload::Normal(proposal) = &entry.payload {
                bytes += proposal.size_bytes();
            }
            batch.push((entry, responder));
            if batch.len() == APPLY_ENTRIES || bytes >= APPLY_BYTES {
                self.apply_batch(std::mem::take(&mut batch)).await.map_err(other)?;
                bytes = 0;
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.apply_batch(batch).await.map_err(other)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let (store, durable) = (self.store.clone(), self.durable.clone());
        SnapshotBuilder { store, durable, blocking: self.blocking }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let SnapshotData::Staged(staged) = snapshot else {
            return Err(io::Error::other("a view of the store itself cannot be installed"));
        };
        let (last, membership) = decode_applied(staged.applied()).map_err(other)?;
        // Planted: the state is taken for that of the entry in the header.
        let last = if planted::is(Bug::SnapshotOfAnotherTerm) { meta.last_log_id } else { last };
        if last != meta.last_log_id {
            return Err(io::Error::other("the snapshot is of another log entry than its header says"));
        }
        let mut applied = self.applied.lock().await;
        self.blocking.in_place(|| self.store.install(*staged)).map_err(other)?;
        applied.last = last;
        applied.membership = membership;
        // Planted: whoever receives a snapshot knows no members.
        if planted::is(Bug::SnapshotWithoutMembers) {
            applied.membership = StoredMembership::default();
        }
        let index = last.map_or(0, |last| last.index);
        self.durable.fetch_max(index, Ordering::AcqRel);
        applied.index.send_replace(index);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
        // The store is its own snapshot: a view can be taken at any time at little cost.
        if self.applied.lock().await.last.is_none() {
            return Ok(None);
        }
        self.blocking.in_place(|| view(&self.store)).map(Some)
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<RaftSnapshot> {
        let snapshot = self.blocking.in_place(|| view(&self.store))?;
        let store = self.store.clone();
        // Planted: the log may be purged though the objects are not durable.
        if !planted::is(Bug::PurgeBeforeDurable) {
            self.blocking.run(move || store.sync()).await?.map_err(other)?;
        }
        let index = snapshot.meta.last_log_id.map_or(0, |last| last.index);
        self.durable.fetch_max(index, Ordering::AcqRel);
        Ok(snapshot)
    }
}

fn view(store: &Store) -> io::Result<RaftSnapshot> {
    let view = store.view();
    let (last_log_id, mut last_membership) = decode_applied(view.applied()).map_err(other)?;
    // Planted: a snapshot does not say who the members are.
    if planted::is(Bug::SnapshotWithoutMembers) {
        last_membership = StoredMembership::default();
    }
    Ok(Snapshot { meta: SnapshotMeta { last_log_id, last_membership }, snapshot: SnapshotData::View(view) })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use openraft::type_config::alias::CommittedLeaderIdOf;
    use storage::Limits;
    use storage::backend::memory::MemoryHome;
    use storage::backend::{Backend, Batch, Home, Visitor};

    use super::*;
    use crate::raft_types::RaftEntry;

    /// A home whose backend is full: a write waits until the test allows it.
    struct Full(Arc<FullBackend>);
    struct FullBackend(Arc<dyn Backend>, Mutex<Receiver<()>>);

    impl Backend for FullBackend {
        fn load(&self, visit: Visitor<'_>) -> storage::Result<()> {
            self.0.load(visit)
        }
        fn write(&self, batch: Batch) -> storage::Result<()> {
            self.1.lock().unwrap().recv_timeout(Duration::from_secs(10)).expect("the other task ran");
            self.0.write(batch)
        }
        fn sync(&self) -> storage::Result<()> {
            self.0.sync()
        }
        fn is_full(&self) -> bool {
            true
        }
        fn disk_bytes(&self) -> u64 {
            0
        }
        fn retire(&self) {}
    }

    impl Home for Full {
        fn open(&self) -> storage::Result<Arc<dyn Backend>> {
            Ok(self.0.clone())
        }
        fn stage(&self) -> storage::Result<(String, Arc<dyn Backend>)> {
            unreachable!("nothing is staged here")
        }
        fn adopt(&self, _: &str) -> storage::Result<()> {
            unreachable!("nothing is adopted here")
        }
    }

    #[test]
    fn while_an_apply_waits_for_the_object_store_other_tasks_of_its_thread_go_on() {
        let (allow, allowed): (Sender<()>, _) = channel();
        let backend = MemoryHome::default().open().unwrap();
        let home = Full(Arc::new(FullBackend(backend, Mutex::new(allowed))));
        let store = Store::open_home(Arc::new(home), Limits::default()).unwrap();
        let mut machine = StateMachine::new(store, Arc::default(), Blocking::Threads).unwrap();
        // One thread, as when the other one waits, too.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let applied = runtime.spawn(async move {
            // Woken last, this task is the next of this thread, and no other thread takes it.
            tokio::spawn(async move { allow.send(()).unwrap() });
            let leader_id = CommittedLeaderIdOf::<TypeConfig>::from(1);
            let entry = RaftEntry::new_blank(LogId { leader_id, index: 1 });
            machine.apply(futures::stream::iter([Ok((entry, None))])).await
        });
        runtime.block_on(applied).unwrap().unwrap();
    }
}
