//! The state on disk: small records in three tables, written in atomic batches. Production uses [`sled`]
//! with [`write_behind`] in front of it, the simulation and tests use [`memory`]; one conformance suite
//! runs over both. Used only by `store`.

mod conformance;
pub mod memory;
pub mod sled;
pub mod write_behind;

use std::sync::Arc;

use crate::Result;

/// The kind of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Objects, keyed by the revision that created them.
    Objects,
    /// Outcomes of recent proposals, keyed by log index.
    Recent,
    /// The single records of the state machine.
    Meta,
}

/// Changes that reach the disk together or not at all. Keys have up to 255 bytes and are not encrypted on
/// disk; values are.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    pub(crate) changes: Vec<RecordChange>,
}

#[derive(Debug, Clone)]
pub(crate) struct RecordChange {
    pub table: Table,
    pub key: Vec<u8>,
    /// The new value; `None` removes the record.
    pub value: Option<Vec<u8>>,
}

/// Callback that takes the records of [`Backend::load`] one by one.
pub type Visitor<'a> = &'a mut dyn FnMut(Table, &[u8], Vec<u8>) -> Result<()>;

/// One state on disk.
pub trait Backend: Send + Sync + 'static {
    /// Passes every record to `visit`, in no particular order.
    fn load(&self, visit: Visitor<'_>) -> Result<()>;
    /// Writes a batch, atomically and after all earlier ones. It is durable only after [`Backend::sync`].
    fn write(&self, batch: Batch) -> Result<()>;
    /// Makes every batch written before it durable.
    fn sync(&self) -> Result<()>;
    /// Returns whether [`Backend::write`] would have to wait for earlier writes now.
    fn is_full(&self) -> bool;
    /// Returns the bytes it takes on disk; 0 if that is not known.
    fn disk_bytes(&self) -> u64;
    /// Marks this state as no longer needed: its files are removed with the last reference to it, or, after
    /// a crash, when the home is opened again.
    fn retire(&self);
}

/// The place where a store keeps its states: the current one, and one into which a snapshot is received.
pub trait Home: Send + Sync + 'static {
    /// Opens the current state, which is empty at first.
    fn open(&self) -> Result<Arc<dyn Backend>>;
    /// Makes a new, empty state beside the current one; returns its name too.
    fn stage(&self) -> Result<(String, Arc<dyn Backend>)>;
    /// Makes a staged state, which must be synced, the current one, durably: after a crash the current
    /// state is the old or the new one.
    fn adopt(&self, name: &str) -> Result<()>;
}

// === impl Batch ===

impl Batch {
    /// Adds or replaces a record.
    pub fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.changes.push(RecordChange { table, key, value: Some(value) });
    }

    /// Removes a record.
    pub fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.changes.push(RecordChange { table, key, value: None });
    }
}
