//! Where the state lies on disk: small records in three tables, written in
//! atomic batches. [`sled`], written [`behind`] whoever applies, is production,
//! [`memory`] the simulation and tests; one conformance suite runs over both. Called by `store` alone.

mod conformance;
pub mod memory;
pub mod sled;
pub mod write_behind;

use std::sync::Arc;

use crate::Result;

/// Which kind of record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Objects by the revision that created them.
    Objects,
    /// Outcomes of recent proposals by log index.
    Recent,
    /// The single records of the state machine.
    Meta,
}

/// Changes that reach the disk together or not at all. Keys have up to 255 bytes and may be seen on disk; values
/// are sealed there.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    pub(crate) changes: Vec<Change>,
}

#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub table: Table,
    pub key: Vec<u8>,
    /// `None` removes.
    pub value: Option<Vec<u8>>,
}

/// Takes the records of [`Backend::load`] one by one.
pub type Visitor<'a> = &'a mut dyn FnMut(Table, &[u8], Vec<u8>) -> Result<()>;

/// One state on disk.
pub trait Backend: Send + Sync + 'static {
    /// Gives every record to `visit`, in no particular order.
    fn load(&self, visit: Visitor<'_>) -> Result<()>;
    /// Writes a batch. It is atomic and ordered after earlier ones, and durable
    /// only after [`Backend::sync`].
    fn write(&self, batch: Batch) -> Result<()>;
    /// Makes every batch written before it durable.
    fn sync(&self) -> Result<()>;
    /// Bytes it takes on disk; 0 where nobody knows.
    fn disk_bytes(&self) -> u64 {
        0
    }
    /// Nobody wants this state any more: what it holds on disk goes with the last
    /// reference to it, or, after a crash, when the home is opened again.
    fn retire(&self);
}

/// The place where a store keeps its states: the current one, and one that a
/// snapshot is being received into.
pub trait Home: Send + Sync + 'static {
    /// The current state; an empty one at first.
    fn open(&self) -> Result<Arc<dyn Backend>>;
    /// A new, empty state beside the current one, with a name.
    fn stage(&self) -> Result<(String, Arc<dyn Backend>)>;
    /// Makes a staged state, which must be synced, the current one: durably, and
    /// so that a crash leaves either.
    fn adopt(&self, name: &str) -> Result<()>;
}

// === impl Batch ===

impl Batch {
    /// Adds or replaces a record.
    pub fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.changes.push(Change { table, key, value: Some(value) });
    }

    /// Removes a record.
    pub fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.changes.push(Change { table, key, value: None });
    }
}
