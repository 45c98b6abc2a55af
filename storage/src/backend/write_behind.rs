//! A backend that writes behind: changes go into memory at once and to the database a little later, many
//! batches as one, on a thread of its own. So an answer does not wait for the database, and a record that
//! is replaced meanwhile is written only once. `sled.rs` puts it in front of every database it opens.
//!
//! Nothing is lost: the log still holds changes not yet written, and [`Backend::sync`], which precedes
//! every purge of the log, writes them first. The database always holds the state after some batch, never
//! one in between.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proto_env::supervise::catch_call;

use super::{Backend, Batch, Table, Visitor};
use crate::store::lock;
use crate::{Error, Result, io as io_error};

/// Maximum time for which a change waits for others.
const LINGER: Duration = Duration::from_millis(20);
/// Bytes of waiting changes that are written without waiting for more.
const EAGER_BYTES: usize = 1024 * 1024;
/// Maximum bytes and number of waiting changes; beyond, a writer waits for the database. Changes are
/// counted too, because small ones take the database as long as larger ones, and a sync has to write them
/// all first.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
const WAITING_CHANGES_MAX: usize = 4096;
/// Number of waiting changes that are written without waiting for more.
const EAGER_CHANGES: usize = 512;
/// Bytes counted for a change besides its key and value.
const CHANGE_BYTES: usize = 64;

/// A backend that writes behind.
pub struct WriteBehind {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    inner: Arc<dyn Backend>,
    waiting: Mutex<PendingChanges>,
    /// Signalled when there are changes to write, or no more will come.
    work: Condvar,
    /// Signalled when the waiting changes were taken.
    room: Condvar,
    /// Locked while a batch is written, so that batches are written in order.
    writing: Mutex<()>,
}

#[derive(Default)]
struct PendingChanges {
    /// The newest value of each waiting record; `None` if it is removed.
    changes: BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>,
    bytes: usize,
    /// Why writing has failed; `None` if it has not.
    failed: Option<String>,
    ended: bool,
    retired: bool,
}

impl PendingChanges {
    fn is_full(&self) -> bool {
        self.bytes >= WAITING_BYTES_MAX || self.changes.len() >= WAITING_CHANGES_MAX
    }

    /// Returns whether the waiting changes should be written at once.
    fn is_enough(&self) -> bool {
        self.bytes >= EAGER_BYTES || self.changes.len() >= EAGER_CHANGES
    }

    fn check(&self) -> Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(reason) => {
                Err(Error::Io { doing: "writing objects", source: std::io::Error::other(reason.clone()) })
            }
        }
    }
}

// === impl Shared ===

impl Shared {
    /// Writes the waiting changes. After an error everything fails: the node must stop.
    fn flush(&self) -> Result<()> {
        let _in_order = lock(&self.writing);
        let changes = {
            let mut waiting = lock(&self.waiting);
            waiting.check()?;
            waiting.bytes = 0;
            std::mem::take(&mut waiting.changes)
        };
        self.room.notify_all();
        if changes.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        for ((table, key), value) in changes {
            match value {
                Some(value) => batch.put(table, key, value),
                None => batch.delete(table, key),
            }
        }
        // sled panics on some damage. Without an error here, writers would wait for room for ever.
        let written = catch_call("object writer", || self.inner.write(batch));
        let written = written.unwrap_or_else(|panicked| {
            Err(Error::Io { doing: "writing objects", source: std::io::Error::other(panicked) })
        });
        written.inspect_err(|error| {
            lock(&self.waiting).failed = Some(error.to_string());
            self.room.notify_all();
        })
    }

    fn run(&self) {
        loop {
            let mut waiting = lock(&self.waiting);
            while waiting.changes.is_empty() && !waiting.ended {
                waiting = self.work.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            let until = Instant::now() + LINGER;
            while !waiting.ended && !waiting.is_enough() {
                let Some(left) = until.checked_duration_since(Instant::now()) else { break };
                waiting = self.work.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            if waiting.ended || waiting.failed.is_some() {
                return;
            }
            drop(waiting);
            if let Err(error) = self.flush() {
                tracing::error!(%error, "writing objects failed; this node must stop");
                return;
            }
        }
    }
}

// === impl WriteBehind ===

impl WriteBehind {
    /// Makes a backend that writes to `inner` in the background.
    ///
    /// # Errors
    /// Fails if the thread cannot be started.
    pub fn new(inner: Arc<dyn Backend>) -> Result<Self> {
        let (waiting, work, room, writing) = Default::default();
        let shared = Arc::new(Shared { inner, waiting, work, room, writing });
        let thread = std::thread::Builder::new()
            .name("object-writer".to_owned())
            .spawn({
                let shared = shared.clone();
                move || shared.run()
            })
            .map_err(io_error("starting the object writer"))?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Backend for WriteBehind {
    fn load(&self, visit: Visitor<'_>) -> Result<()> {
        self.shared.flush()?;
        self.shared.inner.load(visit)
    }

    fn write(&self, batch: Batch) -> Result<()> {
        let mut waiting = lock(&self.shared.waiting);
        while waiting.is_full() && waiting.failed.is_none() {
            waiting = self.shared.room.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.check()?;
        let (was_empty, was_enough) = (waiting.changes.is_empty(), waiting.is_enough());
        for change in batch.changes {
            let size = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len) + CHANGE_BYTES;
            waiting.bytes += change.key.len() + size(&change.value);
            let key_bytes = change.key.len();
            if let Some(replaced) = waiting.changes.insert((change.table, change.key), change.value) {
                waiting.bytes -= key_bytes + size(&replaced);
            }
        }
        if was_empty || !was_enough && waiting.is_enough() {
            self.shared.work.notify_one();
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        lock(&self.shared.waiting).is_full()
    }

    fn disk_bytes(&self) -> u64 {
        self.shared.inner.disk_bytes()
    }

    fn sync(&self) -> Result<()> {
        self.shared.flush()?;
        self.shared.inner.sync()
    }

    fn retire(&self) {
        lock(&self.shared.waiting).retired = true;
        self.shared.inner.retire();
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        let retired = {
            let mut waiting = lock(&self.shared.waiting);
            waiting.ended = true;
            waiting.retired
        };
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the object writer panicked");
        }
        // The waiting changes are in the log too, but once written they need not be replayed.
        if !retired && let Err(error) = self.shared.flush() {
            tracing::warn!(%error, "the last objects were not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Home;
    use crate::backend::memory::MemoryHome;

    /// A backend that counts its batches, and fails, panics or waits on request.
    struct Counting {
        inner: Arc<dyn Backend>,
        batches: Mutex<usize>,
        failing: Mutex<bool>,
        panicking: Mutex<bool>,
        /// Locked by a test to hold up writes.
        gate: Mutex<()>,
    }

    impl Backend for Counting {
        fn load(&self, visit: Visitor<'_>) -> Result<()> {
            self.inner.load(visit)
        }
        fn write(&self, batch: Batch) -> Result<()> {
            let _held_up = lock(&self.gate);
            assert!(!*lock(&self.panicking), "the database is damaged");
            if *lock(&self.failing) {
                return Err(Error::TooLarge { what: "a test" });
            }
            *lock(&self.batches) += 1;
            self.inner.write(batch)
        }
        fn sync(&self) -> Result<()> {
            self.inner.sync()
        }
        fn is_full(&self) -> bool {
            false
        }
        fn disk_bytes(&self) -> u64 {
            4711
        }
        fn retire(&self) {
            self.inner.retire();
        }
    }

    fn counting() -> (MemoryHome, Arc<Counting>) {
        let home = MemoryHome::default();
        let (batches, failing, panicking, gate) = Default::default();
        let inner = home.open().unwrap();
        (home, Arc::new(Counting { inner, batches, failing, panicking, gate }))
    }

    fn put(backend: &dyn Backend, number: u32, bytes: usize) -> Result<()> {
        let mut batch = Batch::default();
        batch.put(Table::Objects, b"/same".to_vec(), vec![number as u8; bytes]);
        batch.put(Table::Meta, b"state".to_vec(), number.to_le_bytes().to_vec());
        backend.write(batch)
    }

    fn found(backend: &dyn Backend) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut visit = |_, key: &[u8], value| {
            found.insert(key.to_vec(), value);
            Ok(())
        };
        backend.load(&mut visit).unwrap();
        found
    }

    #[test]
    fn many_batches_become_few_and_the_last_value_wins() {
        let (_home, counting) = counting();
        let behind = WriteBehind::new(counting.clone()).unwrap();
        for number in 0..1000 {
            put(&behind, number, 100).unwrap();
        }
        behind.sync().unwrap();
        let found = found(counting.as_ref());
        assert_eq!(found[&b"state".to_vec()], 999_u32.to_le_bytes());
        assert_eq!(found[&b"/same".to_vec()], vec![999_u32 as u8; 100]);
        assert!(*lock(&counting.batches) < 500, "{} batches", lock(&counting.batches));
    }

    #[test]
    fn a_sync_makes_what_waits_durable_and_a_drop_writes_it() {
        let (home, counting) = counting();
        let behind = WriteBehind::new(counting.clone()).unwrap();
        put(&behind, 1, 10).unwrap();
        behind.sync().unwrap();
        put(&behind, 2, 10).unwrap();
        drop(behind);
        assert_eq!(found(counting.as_ref())[&b"state".to_vec()], 2_u32.to_le_bytes());
        home.power_loss();
        assert_eq!(found(counting.as_ref())[&b"state".to_vec()], 1_u32.to_le_bytes());
    }

    #[test]
    fn after_a_failed_write_everything_fails() {
        let (_home, counting) = counting();
        let behind = WriteBehind::new(counting.clone()).unwrap();
        *lock(&counting.failing) = true;
        put(&behind, 1, 10).unwrap();
        assert!(behind.sync().is_err());
        *lock(&counting.failing) = false;
        assert!(put(&behind, 2, 10).is_err());
        assert!(behind.sync().is_err());
        assert!(found(counting.as_ref()).is_empty());
    }

    #[test]
    fn after_a_panic_of_the_database_everything_fails_and_nobody_waits_for_room() {
        let (_home, counting) = counting();
        let behind = WriteBehind::new(counting.clone()).unwrap();
        *lock(&counting.panicking) = true;
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let failed = (0..).find(|number| put(&behind, *number, WAITING_BYTES_MAX).is_err());
            sender.send((failed.is_some(), behind.sync().is_err())).unwrap();
        });
        assert_eq!(receiver.recv_timeout(Duration::from_secs(60)), Ok((true, true)));
        assert!(found(counting.as_ref()).is_empty());
    }

    #[test]
    fn it_says_when_a_write_would_wait_and_how_large_the_database_is() {
        let (_home, counting) = counting();
        let behind = WriteBehind::new(counting.clone()).unwrap();
        assert_eq!(behind.disk_bytes(), 4711);
        assert!(!behind.is_full());
        let held_up = lock(&counting.gate);
        let mut batch = Batch::default();
        for number in 0..WAITING_CHANGES_MAX as u64 {
            batch.put(Table::Objects, number.to_le_bytes().to_vec(), Vec::new());
        }
        // The first batch is taken by the writer, which is held up with it.
        behind.write(batch.clone()).unwrap();
        while lock(&behind.shared.waiting).is_full() {
            std::thread::yield_now();
        }
        behind.write(batch).unwrap();
        assert!(behind.is_full());
        drop(held_up);
        behind.sync().unwrap();
        assert!(!behind.is_full());
    }

    #[test]
    fn what_waits_is_bounded() {
        let (_home, counting) = counting();
        let behind = WriteBehind::new(counting).unwrap();
        for number in 0..200_u32 {
            let mut batch = Batch::default();
            batch.put(Table::Objects, number.to_le_bytes().to_vec(), vec![1; 1024 * 1024]);
            behind.write(batch).unwrap();
            assert!(lock(&behind.shared.waiting).bytes <= WAITING_BYTES_MAX + 2 * 1024 * 1024);
        }
        for number in 0..20_000_u32 {
            let mut batch = Batch::default();
            batch.put(Table::Objects, number.to_le_bytes().to_vec(), Vec::new());
            behind.write(batch).unwrap();
            assert!(lock(&behind.shared.waiting).changes.len() <= WAITING_CHANGES_MAX);
        }
    }
}
