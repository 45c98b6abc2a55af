//! The log of the consensus: entries, vote and committed position, in segment files that only grow. One
//! `fdatasync` covers all writes that wait. It was measured against the `raft-log` crate and sled
//! (`ops/docs/decisions/log-store.md`). `consensus/log_store.rs` adapts it to openraft.
//!
//! Entries can be read as soon as `append` returns; they are durable once its callback is called. After an
//! error nothing is written any more and every call fails: the node must stop.

mod record;
mod recover;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use proto_env::planted::{self, Bug};
use proto_env::{Disk, raise_thread_priority};

use self::record::{HEADER_BYTES, Record};
use self::writer::{Job, Writer};
use crate::crypto::Sealer;
use crate::store::lock;
use crate::{Error, Result, io as io_error};

/// Maximum bytes of payloads kept in memory: those sent to followers that keep up, and those applied soon.
const CACHE_BYTES: usize = 16 * 1024 * 1024;
/// Age below which a payload stays in memory; it leaves at most as much later. A follower that is this far
/// behind is sent what is on disk.
const CACHE_AGE: Duration = Duration::from_secs(20);
/// Maximum number of writes that wait for the disk; further callers block.
const QUEUE_JOBS: usize = 1024;

/// Callback, called once when a write is durable or has failed.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Settings of a log.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Size in bytes at which a segment is closed.
    pub segment_bytes: u64,
    /// Whether writes happen within the caller instead of on a thread, as the simulation needs.
    pub inline: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 64 * 1024 * 1024, inline: false }
    }
}

/// The state of the log besides its entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The last index purged, with the id that the caller gave for it; `None`: nothing was purged.
    pub purged: Option<(u64, Vec<u8>)>,
    /// The index of the last entry; `None` without entries.
    pub last: Option<u64>,
    /// The vote, as encoded by the caller; `None`: none was saved.
    pub vote: Option<Vec<u8>>,
    /// The committed position, as encoded by the caller; `None`: none was saved.
    pub committed: Option<Vec<u8>>,
}

/// A log in one directory.
pub struct Log {
    index: Arc<Mutex<Index>>,
    writer: Inner,
    sealer: Arc<Sealer>,
    disk: Arc<dyn Disk>,
    directory: PathBuf,
}

enum Inner {
    Thread { jobs: Mutex<Option<SyncSender<Job>>>, thread: Mutex<Option<std::thread::JoinHandle<()>>> },
    Inline(Mutex<Writer>),
}

/// The in-memory index of the log's entries.
#[derive(Default)]
struct Index {
    state: State,
    slots: BTreeMap<u64, CachedEntry>,
    /// Entries below this index have no payload in memory.
    cached_from: u64,
    cached_bytes: usize,
    /// Total bytes of all segments.
    disk_bytes: u64,
    stamp: u64,
    /// Whether the committed position is still to be written, together with the next write.
    committed_waits: bool,
}

#[derive(Default, Clone)]
struct CachedEntry {
    payload: Option<Bytes>,
    at: Option<Location>,
    /// Tells this entry from an earlier one that had the same index before a truncation.
    stamp: u64,
}

#[derive(Clone, Copy)]
struct Location {
    segment: u64,
    offset: u64,
    len: usize,
}

// === impl Index ===

impl Index {
    /// Returns a stamp that no other slot has.
    fn next_stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    /// Takes the committed position if it was saved since it was last taken.
    fn take_committed(&mut self) -> Option<Vec<u8>> {
        std::mem::take(&mut self.committed_waits).then(|| self.state.committed.clone()).flatten()
    }

    fn truncate_after(&mut self, index: Option<u64>) {
        let gone = match index {
            Some(index) => self.slots.split_off(&(index + 1)),
            None => std::mem::take(&mut self.slots),
        };
        self.forget(gone.into_values());
        self.refresh_last();
    }

    fn purge(&mut self, index: u64, id: Vec<u8>) {
        let kept = self.slots.split_off(&(index + 1));
        let gone = std::mem::replace(&mut self.slots, kept);
        self.forget(gone.into_values());
        self.state.purged = Some((index, id));
        self.refresh_last();
    }

    fn forget(&mut self, slots: impl Iterator<Item = CachedEntry>) {
        self.cached_bytes -=
            slots.filter_map(|slot| slot.payload).map(|payload| payload.len()).sum::<usize>();
    }

    fn refresh_last(&mut self) {
        self.state.last = self.slots.last_key_value().map(|(index, _)| *index);
    }

    fn insert(&mut self, index: u64, slot: CachedEntry) {
        self.cached_bytes += slot.payload.as_ref().map_or(0, Bytes::len);
        if let Some(replaced) = self.slots.insert(index, slot) {
            self.forget([replaced].into_iter());
        }
        self.cached_from = self.cached_from.min(index);
        self.state.last = Some(self.state.last.map_or(index, |last| last.max(index)));
    }

    /// Drops the oldest payloads that are on disk until the cache is within [`CACHE_BYTES`].
    fn shrink(&mut self) {
        self.drop_payloads(|_, cached| cached > CACHE_BYTES);
    }

    /// Drops the payloads of entries below an index that are on disk.
    fn drop_below(&mut self, limit: u64) {
        self.drop_payloads(|index, _| index < limit);
    }

    /// Drops the oldest payloads that are on disk, for as long as `goes` is true of the index of the next
    /// one and the bytes that are in memory.
    fn drop_payloads(&mut self, goes: impl Fn(u64, usize) -> bool) {
        while let Some((index, slot)) = self.slots.range_mut(self.cached_from..).next() {
            if slot.at.is_none() || !goes(*index, self.cached_bytes) {
                return;
            }
            self.cached_from = index + 1;
            self.cached_bytes -= slot.payload.take().map_or(0, |payload| payload.len());
        }
    }
}

// === impl Log ===

impl Log {
    /// Opens the log in `directory`, which is created if missing. A torn tail that was never synced is cut
    /// off; damage to synced data is an error.
    pub fn open(
        directory: &Path,
        sealer: Sealer,
        disk: Arc<dyn Disk>,
        options: Options,
    ) -> Result<Arc<Self>> {
        disk.create_dir_all(directory).map_err(io_error("making the log directory"))?;
        let sealer = Arc::new(sealer);
        let recovered = recover::recover(directory, &sealer, disk.as_ref())?;
        let index = Arc::new(Mutex::new(recovered.index));
        let writer = Writer::new(
            directory.to_owned(),
            sealer.clone(),
            disk.clone(),
            index.clone(),
            options.segment_bytes,
            recovered.tail,
        )?;
        let writer = if options.inline {
            Inner::Inline(Mutex::new(writer))
        } else {
            let (sender, receiver) = sync_channel(QUEUE_JOBS);
            let thread = std::thread::Builder::new()
                .name("log-writer".to_owned())
                .spawn(move || {
                    // Raised because no write is acknowledged before this thread has synced it.
                    let priority = raise_thread_priority();
                    tracing::debug!(?priority, "the log writer has started");
                    writer.run(&receiver);
                })
                .map_err(io_error("starting the log writer"))?;
            Inner::Thread { jobs: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) }
        };
        Ok(Arc::new(Self { index, writer, sealer, disk, directory: directory.to_owned() }))
    }

    /// Returns the state of the log besides its entries.
    pub fn state(&self) -> State {
        lock(&self.index).state.clone()
    }

    /// Returns the total bytes of all segments on disk.
    pub fn disk_bytes(&self) -> u64 {
        lock(&self.index).disk_bytes
    }

    /// Appends entries, which must follow the last one without a gap.
    pub fn append(&self, entries: Vec<(u64, Bytes)>, done: Done) {
        let mut records = Vec::with_capacity(entries.len());
        {
            let mut known = lock(&self.index);
            for (index, payload) in entries {
                let stamp = known.next_stamp();
                known.insert(index, CachedEntry { payload: Some(payload.clone()), at: None, stamp });
                records.push((Record::Entry { index, payload }, stamp));
            }
        }
        // Planted: entries are acknowledged before they are synced.
        let sync = !planted::is(Bug::LogNotSynced) && !planted::is(Bug::LogReversalAllowed);
        self.submit(Job { records, sync, done });
    }

    /// Drops payloads from memory once they are 20 to 40 s old, for as long as the future is polled: what a
    /// load leaves behind goes soon after its end.
    pub async fn drop_old_payloads(self: Arc<Self>) {
        let mut old = 0;
        loop {
            tokio::time::sleep(CACHE_AGE).await;
            let mut known = lock(&self.index);
            known.drop_below(old);
            old = known.state.last.map_or(0, |last| last + 1);
        }
    }

    /// Saves the vote.
    pub fn save_vote(&self, vote: Vec<u8>, done: Done) {
        lock(&self.index).state.vote = Some(vote.clone());
        // Planted: the vote is only in memory, or not synced before it is answered.
        if planted::is(Bug::VoteNotWritten) {
            return done(Ok(()));
        }
        self.submit(Job::one(Record::Vote(vote), !planted::is(Bug::VoteNotSynced), done));
    }

    /// Saves the committed position. It causes no write of its own: it is written together with the next
    /// one.
    pub fn save_committed(&self, committed: Vec<u8>) {
        let mut known = lock(&self.index);
        known.state.committed = Some(committed);
        known.committed_waits = true;
    }

    /// Removes the entries after `index` (`None`: all entries).
    pub fn truncate_after(&self, index: Option<u64>, done: Done) {
        lock(&self.index).truncate_after(index);
        self.submit(Job::one(Record::TruncateAfter(index), true, done));
    }

    /// Removes the entries up to `index`; `id` is returned for that index in [`State::purged`].
    pub fn purge(&self, index: u64, id: Vec<u8>, done: Done) {
        lock(&self.index).purge(index, id.clone());
        self.submit(Job::one(Record::Purge { index, id }, true, done));
    }

    /// Returns whether [`Self::read`] from `from` on needs no file.
    pub fn is_in_memory(&self, from: u64) -> bool {
        let known = lock(&self.index);
        known.slots.range(from..).next().is_none_or(|(_, slot)| slot.payload.is_some())
    }

    /// Reads the existing entries from `from` to before `to`, until they reach `max_bytes` (but at least
    /// one).
    pub fn read(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<(u64, Bytes)>> {
        let slots: Vec<(u64, CachedEntry)> = {
            let known = lock(&self.index);
            let mut bytes = 0;
            let mut fits = |slot: &CachedEntry| {
                let before = bytes;
                let on_disk = slot.at.map_or(0, |at| at.len);
                bytes += slot.payload.as_ref().map_or(on_disk, Bytes::len);
                before == 0 || bytes <= max_bytes
            };
            let range = known.slots.range(from..to.max(from));
            range.take_while(|(_, slot)| fits(slot)).map(|(index, slot)| (*index, slot.clone())).collect()
        };
        slots.into_iter().map(|(index, slot)| Ok((index, self.payload(index, slot)?))).collect()
    }

    fn payload(&self, index: u64, slot: CachedEntry) -> Result<Bytes> {
        let damaged = |reason: &str| Error::Damaged { what: "log entry", reason: reason.to_owned() };
        if let Some(payload) = slot.payload {
            return Ok(payload);
        }
        let at = slot.at.ok_or_else(|| damaged("it is neither in memory nor on disk"))?;
        let path = segment_path(&self.directory, at.segment);
        let bytes = self
            .disk
            .read_at(&path, at.offset, HEADER_BYTES + at.len)
            .map_err(io_error("reading the log"))?;
        match record::open(&self.sealer, &bytes)? {
            (_, Record::Entry { index: found, payload }) if found == index => Ok(payload),
            _ => Err(damaged("another record lies in its place")),
        }
    }

    fn submit(&self, mut job: Job) {
        // The committed position follows the entries it refers to, which were submitted before it was
        // saved.
        let committed = lock(&self.index).take_committed();
        if let Some(committed) = committed {
            job.records.insert(0, (Record::Committed(committed), 0));
        }
        match &self.writer {
            Inner::Inline(writer) => lock(writer).write(vec![job]),
            Inner::Thread { jobs, .. } => {
                let sender = lock(jobs).clone();
                let stopped = match sender {
                    Some(sender) => sender.send(job).map_err(|error| error.0).err(),
                    None => Some(job),
                };
                if let Some(job) = stopped {
                    (job.done)(Err(io::Error::other("the log has stopped")));
                }
            }
        }
    }

    /// Waits for the submitted writes and stops the writer.
    pub fn close(&self) {
        match &self.writer {
            Inner::Inline(writer) => lock(writer).end(),
            Inner::Thread { .. } => self.stop_thread(),
        }
    }

    fn stop_thread(&self) {
        if let Inner::Thread { jobs, thread } = &self.writer {
            drop(lock(jobs).take());
            if let Some(thread) = lock(thread).take()
                && thread.join().is_err()
            {
                tracing::error!("the log writer panicked");
            }
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.stop_thread();
    }
}

fn segment_path(directory: &Path, segment: u64) -> PathBuf {
    directory.join(format!("log-{segment:020}"))
}
