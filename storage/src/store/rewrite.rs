//! Rewriting the whole state into a new database while entries are applied, and then switching to it. sled
//! 0.34 reuses the space of replaced records only in part, so its files grow; `consensus` asks for a
//! rewrite when they are far larger than their content. After a crash at any moment the old or the new
//! database is there, complete.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{CurrentBackend, Sizes, Store, lock, read, records};
use crate::Result;
use crate::backend::{Backend, Batch};

/// Approximate bytes of objects copied in one step; an apply may have to wait for one step.
const STEP_BYTES: usize = 256 * 1024;
/// Number of log entries whose outcomes are copied in one step.
const STEP_ENTRIES: usize = 512;
/// Size in bytes below which a database is not rewritten.
const REWRITE_ABOVE: u64 = 256 * 1024 * 1024;
/// Ratio of the size of a database to the size of its objects above which the database is rewritten.
const REWRITE_TIMES: u64 = 4;

/// The result of a rewrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewritten {
    /// The state is in a new database.
    Done,
    /// The rewrite was given up because a snapshot was installed or the copy could not be written. The
    /// present database is unchanged.
    GivenUp,
}

impl Store {
    /// Returns whether the database has grown far beyond its content, and since its last rewrite.
    pub fn is_bloated(&self) -> bool {
        bloated(&self.sizes(), self.rewritten_bytes.load(Ordering::Relaxed))
    }

    /// Rewrites the state. Blocks for as long as the disk takes, while reads and writes go on. After an
    /// error the node must stop: it is not known which database the next start would find.
    pub fn rewrite(&self) -> Result<Rewritten> {
        let (name, copy) = match self.home.stage() {
            Ok(staged) => staged,
            Err(error) => {
                tracing::warn!(%error, "a new database for the objects could not be created");
                return Ok(Rewritten::GivenUp);
            }
        };
        // From now on every batch goes to both databases. The copy below reads under the same lock, so
        // nothing older ever replaces something newer.
        lock(&self.backend).mirror = Some(copy.clone());
        let copied = self.copy_to(&copy).and_then(|()| copy.sync());
        let mut current = lock(&self.backend);
        let last_step = copied.and_then(|()| self.copy_state(&current, &copy));
        if let Err(error) = &last_step {
            tracing::warn!(%error, "rewriting the objects is given up");
        }
        if last_step.is_err() || !current.is_copied_to(&copy) {
            if current.is_copied_to(&copy) {
                current.mirror = None;
            }
            copy.retire();
            return Ok(Rewritten::GivenUp);
        }
        self.home.adopt(&name)?;
        let rewritten = copy.disk_bytes();
        std::mem::replace(&mut *current, CurrentBackend { backend: copy, mirror: None }).backend.retire();
        self.rewritten_bytes.store(rewritten, Ordering::Relaxed);
        Ok(Rewritten::Done)
    }

    fn copy_to(&self, copy: &Arc<dyn Backend>) -> Result<()> {
        let mut after: Option<Arc<str>> = None;
        loop {
            let current = lock(&self.backend);
            if !current.is_copied_to(copy) {
                return Ok(());
            }
            let mut batch = Batch::default();
            let mut bytes = 0;
            {
                let live = read(&self.live);
                let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                for (key, object) in live.objects.range::<str, _>((from, Bound::Unbounded)) {
                    records::put_object(&mut batch, object)?;
                    bytes += object.size_bytes();
                    after = Some(key.clone());
                    if bytes >= STEP_BYTES {
                        break;
                    }
                }
            }
            if bytes == 0 {
                break;
            }
            copy.write(batch)?;
        }
        let mut from = 0;
        loop {
            let current = lock(&self.backend);
            let recent = read(&self.live).recent.records_from(from, STEP_ENTRIES);
            let Some((last, _)) = recent.last() else { return Ok(()) };
            from = last + 1;
            let mut batch = Batch::default();
            for (index, outcomes) in &recent {
                records::put_recent(&mut batch, *index, outcomes)?;
            }
            if current.is_copied_to(copy) {
                copy.write(batch)?;
            }
        }
    }

    /// Copies the last record, which marks the copy as complete.
    fn copy_state(&self, current: &CurrentBackend, copy: &Arc<dyn Backend>) -> Result<()> {
        if !current.is_copied_to(copy) {
            return Ok(());
        }
        let mut batch = Batch::default();
        records::put_state(&mut batch, &read(&self.live).state())?;
        copy.write(batch)?;
        copy.sync()
    }
}

/// Returns whether a database is to be rewritten that had `rewritten` bytes after its last rewrite (0: there
/// was none). One that a rewrite could not make small is only rewritten again once it has doubled.
pub(super) fn bloated(sizes: &Sizes, rewritten: u64) -> bool {
    let expected = sizes.object_bytes.saturating_mul(REWRITE_TIMES);
    sizes.disk_bytes > REWRITE_ABOVE.max(expected).max(rewritten.saturating_mul(2))
}

impl CurrentBackend {
    fn is_copied_to(&self, copy: &Arc<dyn Backend>) -> bool {
        self.mirror.as_ref().is_some_and(|mirror| Arc::ptr_eq(mirror, copy))
    }
}
