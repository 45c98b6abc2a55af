//! Watches: the history of recent events, and cursors into it. Each event is kept once and shared. A watch
//! holds the revision it has reached and a small buffer, so a slow watch costs nothing and continues
//! exactly where it was. Once the history has dropped events that the watch has not delivered, the watch
//! ends with [`WatchClosed::Lagged`]. `store/apply.rs` publishes events, `master/apiserver` watches.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use proto_env::planted::{self, Bug};
use tokio::sync::watch as signal;

use crate::{Object, Revision};

/// Number of events that a watch takes out of the history at a time.
const BUFFER_EVENTS: usize = 128;
/// Bytes counted for an event beside its previous object: the event itself, its entries in the history's
/// queues, and what readers derived from the object.
const EVENT_BYTES: usize = 512;
/// Factor by which a queue's capacity may exceed its number of events before memory is given back.
const SPARE: usize = 4;
/// Default interval at which an idle watch reports the revision it has reached.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// One change of one object.
#[derive(Debug, Clone)]
pub struct WatchEvent {
    /// The revision of the change.
    pub revision: Revision,
    /// The object after the change; `None` if it was deleted.
    pub object: Option<Arc<Object>>,
    /// The object before the change; `None` if it was created.
    pub previous: Option<Arc<Object>>,
}

/// Item that a watch delivers.
#[derive(Debug, Clone)]
pub enum WatchItem {
    /// The next event.
    Event(WatchEvent),
    /// No new event: everything up to this revision was delivered.
    Progress(Revision),
}

/// Why a watch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchClosed {
    /// The history has dropped events that this watch had not delivered: the client has to list again.
    #[error("events were compacted before this watch delivered them")]
    Lagged,
    /// The store has stopped.
    #[error("the store has stopped")]
    Stopped,
}

/// The events of recent revisions: all of them in order, and the same events by bucket.
pub(crate) struct History {
    all: Bucket,
    buckets: BTreeMap<Box<str>, Bucket>,
    /// All events up to this revision were published.
    revision: Revision,
    /// Events up to this revision were dropped.
    compacted: Revision,
    /// Number of times the whole state was replaced; a watch that began in an earlier epoch has lagged.
    epoch: u64,
    /// Whether the store has stopped.
    stopped: bool,
    size_bytes: usize,
    events_max: usize,
    bytes_max: usize,
    /// Asks all watches to report the revision they have reached.
    ask: signal::Sender<()>,
}

struct Bucket {
    events: VecDeque<Arc<WatchEvent>>,
    /// Revision of the last event dropped from this bucket; the bucket knows no event up to it.
    dropped: Revision,
    wake: signal::Sender<Revision>,
}

/// A stream of the events of all keys with one prefix.
pub struct Watch {
    history: Arc<RwLock<History>>,
    prefix: String,
    /// Every event up to this revision is delivered or in the buffer.
    cursor: Revision,
    reported: Revision,
    epoch: u64,
    buffer: VecDeque<WatchEvent>,
    wake: signal::Receiver<Revision>,
    asked: signal::Receiver<()>,
    progress_interval: Duration,
}

// === impl WatchEvent ===

impl WatchEvent {
    /// Returns the key that changed.
    pub fn key(&self) -> &str {
        self.object.as_ref().or(self.previous.as_ref()).map_or("", |object| &object.key)
    }

    fn size_bytes(&self) -> usize {
        // The new object is shared with the store until it is replaced; the event of that replacement
        // counts it, as its previous object.
        EVENT_BYTES + self.previous.as_ref().map_or(0, |object| object.size_bytes())
    }
}

// === impl Bucket ===

impl Bucket {
    fn new(dropped: Revision) -> Self {
        Self { events: VecDeque::new(), dropped, wake: signal::Sender::new(dropped) }
    }

    fn give_back(&mut self) {
        if self.events.capacity() / SPARE > self.events.len() {
            self.events.shrink_to(self.events.len() * 2);
        }
    }

    fn after(&self, revision: Revision) -> impl Iterator<Item = &Arc<WatchEvent>> {
        let start = self.events.partition_point(|event| event.revision <= revision);
        self.events.range(start..)
    }
}

/// Returns the part of a key up to its fourth slash (`/registry/GROUP/RESOURCE/`). Nearly every watch and
/// list stays within one such bucket.
fn bucket_of(key: &str) -> Option<&str> {
    let (end, _) = key.match_indices('/').nth(3)?;
    Some(&key[..=end])
}

// === impl History ===

impl History {
    /// Makes a history that begins after `revision`.
    pub(crate) fn new(revision: Revision, events_max: usize, bytes_max: usize) -> Self {
        // Planted: a history short enough for a simulation to outrun it.
        let short = planted::is(Bug::WatchForgetsCompaction) || planted::is(Bug::WatchAtCompaction);
        let events_max = if short { 16 } else { events_max };
        Self {
            all: Bucket::new(revision),
            buckets: BTreeMap::new(),
            revision,
            compacted: revision,
            epoch: 0,
            stopped: false,
            size_bytes: 0,
            events_max,
            bytes_max,
            ask: signal::Sender::new(()),
        }
    }

    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Returns the number of events kept, and their counted bytes.
    #[cfg(test)]
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.all.events.len(), self.size_bytes)
    }

    /// Returns the number of events for which memory is allocated.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.buckets.values().chain([&self.all]).map(|bucket| bucket.events.capacity()).sum()
    }

    /// Returns the number of open watches.
    pub(crate) fn watches(&self) -> u64 {
        let open = |bucket: &Bucket| bucket.wake.receiver_count() as u64;
        self.buckets.values().chain([&self.all]).map(open).sum()
    }

    /// Adds events, which are in the order of their revisions. All events up to `revision` are then
    /// published.
    pub(crate) fn publish(&mut self, events: Vec<WatchEvent>, revision: Revision) {
        let mut woken: BTreeMap<&str, Revision> = BTreeMap::new();
        let events: Vec<_> = events.into_iter().map(Arc::new).collect();
        for event in &events {
            self.size_bytes += event.size_bytes();
            self.all.events.push_back(event.clone());
            let Some(name) = bucket_of(event.key()) else { continue };
            if !self.buckets.contains_key(name) {
                self.buckets.insert(name.into(), Bucket::new(self.compacted));
            }
            if let Some(bucket) = self.buckets.get_mut(name) {
                bucket.events.push_back(event.clone());
            }
            woken.insert(name, event.revision);
        }
        self.revision = revision;
        while self.all.events.len() > self.events_max || self.size_bytes > self.bytes_max {
            if !self.drop_oldest() {
                break;
            }
        }
        for (name, revision) in woken {
            if let Some(bucket) = self.buckets.get(name) {
                bucket.wake.send_replace(revision);
            }
        }
        if let Some(event) = events.last() {
            self.all.wake.send_replace(event.revision);
        }
    }

    /// Drops the events up to `revision` and gives their memory back.
    pub(crate) fn compact(&mut self, revision: Revision) {
        while self.all.events.front().is_some_and(|event| event.revision <= revision) {
            self.drop_oldest();
        }
        self.compacted = self.compacted.max(revision.min(self.revision));
        self.buckets.values_mut().chain([&mut self.all]).for_each(Bucket::give_back);
    }

    /// Drops events up to `revision`, the oldest first, until at most `bytes` are kept, and gives their memory
    /// back.
    pub(crate) fn trim(&mut self, revision: Revision, bytes: usize) {
        let mut dropped = false;
        while self.size_bytes > bytes
            && self.all.events.front().is_some_and(|event| event.revision <= revision)
        {
            dropped = self.drop_oldest();
        }
        if dropped {
            self.buckets.values_mut().chain([&mut self.all]).for_each(Bucket::give_back);
        }
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(event) = self.all.events.pop_front() else { return false };
        self.size_bytes -= event.size_bytes();
        self.all.dropped = event.revision;
        self.compacted = self.compacted.max(event.revision);
        if let Some(bucket) = bucket_of(event.key()).and_then(|name| self.buckets.get_mut(name)) {
            bucket.events.pop_front();
            bucket.dropped = event.revision;
        }
        true
    }

    /// Empties the history after the whole state was replaced; it goes on after `revision`.
    pub(crate) fn reset(&mut self, revision: Revision) {
        self.epoch += 1;
        self.revision = revision;
        self.compacted = revision;
        self.size_bytes = 0;
        for bucket in self.buckets.values_mut().chain([&mut self.all]) {
            bucket.events.clear();
            bucket.dropped = revision;
            bucket.wake.send_replace(revision);
        }
    }

    /// Asks every watch that has advanced since its last report to report at once.
    pub(crate) fn ask_progress(&self) {
        self.ask.send_replace(());
    }

    /// Ends all watches because the store stops.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
        let revision = self.revision;
        for bucket in self.buckets.values().chain([&self.all]) {
            bucket.wake.send_replace(revision);
        }
    }

    fn bucket(&self, prefix: &str) -> Option<&Bucket> {
        match bucket_of(prefix) {
            Some(name) => self.buckets.get(name),
            None => Some(&self.all),
        }
    }

    /// Returns, for every key of `prefix` changed after revision `at`, its object at `at` (`None`: no
    /// object). Returns `None` if the history no longer reaches back to `at`.
    pub(crate) fn undo(&self, prefix: &str, at: Revision) -> Option<BTreeMap<Arc<str>, Option<Arc<Object>>>> {
        let mut undo = BTreeMap::new();
        let Some(bucket) = self.bucket(prefix) else {
            return (at >= self.compacted).then_some(undo);
        };
        if at < bucket.dropped {
            return None;
        }
        for event in bucket.after(at).filter(|event| event.key().starts_with(prefix)) {
            let object = event.object.as_ref().or(event.previous.as_ref());
            if let Some(object) = object {
                undo.entry(object.key.clone()).or_insert_with(|| event.previous.clone());
            }
        }
        Some(undo)
    }
}

// === impl Watch ===

impl Watch {
    /// Starts a watch of all events after revision `after`; `None` if some of them were dropped.
    pub(crate) fn start(history: &Arc<RwLock<History>>, prefix: &str, after: Revision) -> Option<Self> {
        let mut known = history.write().unwrap_or_else(PoisonError::into_inner);
        let compacted = known.compacted;
        let bucket = match bucket_of(prefix) {
            // The bucket is made now if it does not exist, so that the watch has a signal to wait on.
            Some(name) if !known.buckets.contains_key(name) => {
                known.buckets.entry(name.into()).or_insert_with(|| Bucket::new(compacted))
            }
            Some(name) => known.buckets.get_mut(name)?,
            None => &mut known.all,
        };
        // Planted: what is no longer known is passed over.
        let after = if planted::is(Bug::WatchForgetsCompaction) { after.max(bucket.dropped) } else { after };
        if after < bucket.dropped && !at_compaction(after, bucket.dropped) {
            return None;
        }
        let wake = bucket.wake.subscribe();
        let (epoch, asked) = (known.epoch, known.ask.subscribe());
        drop(known);
        Some(Self {
            history: history.clone(),
            prefix: prefix.to_owned(),
            cursor: after,
            reported: after,
            epoch,
            buffer: VecDeque::new(),
            wake,
            asked,
            progress_interval: PROGRESS_INTERVAL,
        })
    }

    /// Sets how often an idle watch reports progress.
    pub fn set_progress_interval(&mut self, interval: Duration) {
        self.progress_interval = interval;
    }

    /// Returns the next event, or the revision reached when there was no event for a while or a report was
    /// asked for. Cancel-safe: an event that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Result<WatchItem, WatchClosed> {
        let mut idle_until = tokio::time::Instant::now() + self.progress_interval;
        loop {
            if let Some(event) = self.buffer.pop_front() {
                self.reported = event.revision;
                return Ok(WatchItem::Event(event));
            }
            // Mark the signal as seen before reading the history, so that a later event wakes this watch.
            self.wake.borrow_and_update();
            self.fill()?;
            if !self.buffer.is_empty() {
                continue;
            }
            tokio::select! {
                biased;
                changed = self.wake.changed() => {
                    changed.map_err(|_| WatchClosed::Stopped)?;
                    continue;
                }
                changed = self.asked.changed() => changed.map_err(|_| WatchClosed::Stopped)?,
                () = tokio::time::sleep_until(idle_until) => {}
            }
            self.fill()?;
            if self.buffer.is_empty() && self.cursor > self.reported {
                self.reported = self.cursor;
                return Ok(WatchItem::Progress(self.cursor));
            }
            // No revision was published at all: wait for another interval.
            idle_until = tokio::time::Instant::now() + self.progress_interval;
        }
    }

    /// Moves the next events from the history into the buffer and advances the cursor.
    fn fill(&mut self) -> Result<(), WatchClosed> {
        let known = self.history.read().unwrap_or_else(PoisonError::into_inner);
        if known.stopped {
            return Err(WatchClosed::Stopped);
        }
        let bucket = known.bucket(&self.prefix).ok_or(WatchClosed::Lagged)?;
        if self.epoch != known.epoch
            || self.cursor < bucket.dropped && !at_compaction(self.cursor, bucket.dropped)
        {
            // Planted: a watch that lags goes on with the events that are left, without an error.
            if !planted::is(Bug::WatchLagsSilently) {
                return Err(WatchClosed::Lagged);
            }
            (self.epoch, self.cursor) = (known.epoch, self.cursor.max(bucket.dropped));
        }
        for event in bucket.after(self.cursor) {
            self.cursor = event.revision;
            if event.key().starts_with(&self.prefix) {
                self.buffer.push_back(WatchEvent::clone(event));
                // Planted: batches are small, and the revision after each is taken as seen.
                if planted::is(Bug::WatchBatchEdge) && self.buffer.len() == 2 {
                    self.cursor += 1;
                    return Ok(());
                }
                // Planted: the buffer is small, and what it has no room for is lost.
                if planted::is(Bug::WatchDropsBacklog) && self.buffer.len() == 8 {
                    break;
                }
                if self.buffer.len() == BUFFER_EVENTS {
                    return Ok(());
                }
            }
        }
        self.cursor = self.cursor.max(known.revision);
        Ok(())
    }
}

/// Planted: whether a watch may begin although the event right after its revision was dropped.
#[inline(always)]
fn at_compaction(after: Revision, dropped: Revision) -> bool {
    planted::is(Bug::WatchAtCompaction) && after + 1 == dropped
}
