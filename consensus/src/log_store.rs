//! openraft's log storage and log reader on top of `storage::log`: encodes entries, votes and log ids, and
//! reports completion once the disk has synced.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::entry::RaftEntry as _;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use proto_env::Blocking;
use proto_env::planted::{self, Bug};
use storage::Store;
use storage::codec::{decode, encode};
use storage::log::{Done, Log};
use tokio::sync::{oneshot, watch};

use crate::elections::SyncTimes;
use crate::raft_types::{LogId, RaftEntry, TypeConfig, Vote};
use crate::sync_delay::SyncDelay;

/// Maximum bytes of entries in one AppendEntries request, or one larger entry. Far below the message limit
/// of the wire.
const APPEND_BYTES: usize = 4 * 1024 * 1024;

/// The log of one master. Clones share the log.
#[derive(Clone)]
pub(crate) struct LogStore {
    log: Arc<Log>,
    store: Arc<Store>,
    /// The log index up to which the object store is durable.
    durable: Arc<AtomicU64>,
    blocking: Blocking,
    sync_delay: SyncDelay,
    syncs: Arc<SyncTimes>,
    /// Index of the last entry appended.
    appended: Option<u64>,
    /// Index up to which openraft certainly offers entries for sending.
    given_out: watch::Sender<Option<u64>>,
}

fn other(error: storage::Error) -> io::Error {
    io::Error::other(error)
}

/// Starts a write of the log and waits until it is durable; `then` is called before anything that waits.
async fn written(
    sync_delay: &SyncDelay,
    then: impl FnOnce() + Send + 'static,
    write: impl FnOnce(Done),
) -> io::Result<()> {
    let (sender, receiver) = oneshot::channel();
    let sync_delay = sync_delay.clone();
    write(Box::new(move |result| {
        sync_delay.after(move || {
            then();
            drop(sender.send(result));
        });
    }));
    receiver.await.map_err(|_| io::Error::other("the log has stopped"))?
}

/// Returns the first index of a range, and the index after its last.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl LogStore {
    pub(crate) fn new(
        log: Arc<Log>,
        store: Arc<Store>,
        durable: Arc<AtomicU64>,
        blocking: Blocking,
        sync_delay: SyncDelay,
    ) -> Self {
        let appended = log.state().last;
        let given_out = watch::Sender::new(appended);
        Self { log, store, durable, blocking, sync_delay, syncs: Arc::default(), appended, given_out }
    }

    /// Watches the index of the last entry that openraft certainly offers for sending. openraft offers an
    /// entry right after its append (`broadcast_submitted_on_append`), which is noticed here at the next
    /// append, so the index is a little behind.
    pub(crate) fn given_out(&self) -> watch::Receiver<Option<u64>> {
        self.given_out.subscribe()
    }

    /// Returns how long appends and votes take.
    pub(crate) fn sync_times(&self) -> Arc<SyncTimes> {
        self.syncs.clone()
    }

    fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<RaftEntry>> {
        let read = || self.log.read(from, to, max_bytes);
        // Entries for a follower that lags may have to be read from the disk.
        let records = if self.log.is_in_memory(from) { read() } else { self.blocking.in_place(read) };
        let records = records.map_err(other)?;
        records.iter().map(|(_, bytes)| decode("log entry", bytes).map_err(other)).collect()
    }

    /// Streams the existing entries from `from` to before `to`, of which about `max_bytes` are read at once.
    fn stream(
        &self,
        from: u64,
        to: u64,
        max_bytes: usize,
    ) -> impl Stream<Item = io::Result<RaftEntry>> + Send + use<'_> {
        let read = move |from| match self.read(from, to, max_bytes) {
            Ok(entries) => entries.last().map(|last| last.index() + 1).map(|next| (Ok(entries), next)),
            // After an error nothing follows.
            Err(error) => Some((Err(error), to)),
        };
        let pieces = futures::stream::unfold(from, move |from| std::future::ready(read(from)));
        pieces.flat_map(|piece| {
            let entries = match piece {
                Ok(entries) => entries.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            futures::stream::iter(entries)
        })
    }

    fn vote(&self) -> io::Result<Option<Vote>> {
        self.log.state().vote.map(|bytes| decode("vote", &bytes).map_err(other)).transpose()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<RaftEntry>> {
        let (from, to) = bounds(&range);
        self.read(from, to, usize::MAX)
    }

    /// Streams entries to apply. They are read a few at a time: after a restart nearly the whole log may have
    /// to be applied, which should not be in memory at once.
    async fn entries_stream<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<RaftEntry>> + OptionalSend {
        let (from, to) = bounds(&range);
        self.stream(from, to, APPEND_BYTES)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.vote()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<RaftEntry>> {
        self.read(start, end, APPEND_BYTES)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.log.state();
        let purged: Option<LogId> =
            state.purged.map(|(_, id)| decode("log id", &id).map_err(other)).transpose()?;
        let last = match state.last {
            Some(index) => self.read(index, index + 1, 1)?.first().map(|entry| entry.log_id()),
            None => purged,
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = encode("vote", vote).map_err(other)?;
        let syncs = self.syncs.clone();
        syncs.begin();
        written(&self.sync_delay, move || syncs.end(), |done| self.log.save_vote(vote, done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(committed) = committed {
            self.log.save_committed(encode("log id", &committed).map_err(other)?);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.log.state().committed.map(|bytes| decode("log id", &bytes).map_err(other)).transpose()
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records = entries
            .into_iter()
            .map(|entry| Ok((entry.index(), Bytes::from(encode("log entry", &entry)?))))
            .collect::<storage::Result<Vec<_>>>()
            .map_err(other)?;
        self.given_out.send_replace(self.appended);
        self.appended = records.last().map(|(index, _)| *index);
        let (sync_delay, syncs) = (self.sync_delay.clone(), self.syncs.clone());
        syncs.begin();
        let done: Done = Box::new(move |result| {
            sync_delay.after(move || {
                syncs.end();
                callback.io_completed(result);
            });
        });
        self.log.append(records, done);
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let last = last_log_id.map(|id| id.index);
        self.appended = last;
        self.given_out.send_replace(last);
        written(&self.sync_delay, || {}, |done| self.log.truncate_after(last, done)).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        // Purged entries can no longer be replayed, so the objects must be durable first. A snapshot that
        // was just built has synced them already.
        // Planted: the objects are not synced.
        if self.durable.load(Ordering::Acquire) < log_id.index && !planted::is(Bug::PurgeBeforeDurable) {
            let store = self.store.clone();
            self.blocking.run(move || store.sync()).await?.map_err(other)?;
        }
        let id = encode("log id", &log_id).map_err(other)?;
        // The purge is not waited for, because openraft's core would send no heartbeat meanwhile. If the
        // write is lost, the entries come back, which does no harm; after a failed write the log takes no
        // other.
        self.log.purge(log_id.index, id, Box::new(|_| {}));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use openraft::type_config::alias::CommittedLeaderIdOf;
    use proto_env::{SystemDisk, SystemRandom};
    use storage::log::Options;
    use storage::{DataKey, Limits, Sealer};

    use super::*;

    #[tokio::test]
    async fn entries_to_apply_are_read_a_few_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let sealer = Sealer::new(&DataKey::generate(&SystemRandom), "log", Arc::new(SystemRandom));
        let options = Options { inline: true, ..Options::default() };
        let log = Log::open(directory.path(), sealer, Arc::new(SystemDisk), options).unwrap();
        let entry = |index| {
            let leader_id = CommittedLeaderIdOf::<TypeConfig>::from(1);
            let entry = RaftEntry::new_blank(LogId { leader_id, index });
            (index, Bytes::from(encode("log entry", &entry).unwrap()))
        };
        log.append((1..=9).map(entry).collect(), Box::new(|result| result.unwrap()));
        let store = Store::in_memory(Limits::default()).unwrap();
        let (durable, delay) = (Arc::default(), SyncDelay::new(Arc::new(SystemDisk)));
        let mut reader = LogStore::new(log.clone(), store, durable, Blocking::Inline, delay);
        let index = |entry: io::Result<RaftEntry>| entry.unwrap().index();
        let all: Vec<_> = reader.entries_stream(2..8).await.map(index).collect().await;
        assert_eq!(all, [2, 3, 4, 5, 6, 7]);
        let two = log.read(1, 3, usize::MAX).unwrap().iter().map(|(_, bytes)| bytes.len()).sum();
        let mut entries = Box::pin(reader.stream(1, 10, two).map(index));
        assert_eq!(entries.next().await, Some(1));
        // Only two entries are in memory; of the others the stream knows nothing yet.
        log.truncate_after(Some(5), Box::new(|result| result.unwrap()));
        assert_eq!(entries.collect::<Vec<_>>().await, [2, 3, 4, 5]);
    }
}
