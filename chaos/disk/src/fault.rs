//! What can be wrong with the disk besides losing power, and how often it was.

use std::time::Duration;

use fuser::Errno;
use serde::{Deserialize, Serialize};

/// One fault; it stays until it is cleared or replaced by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DiskFault {
    /// Reads, writes, syncs and changes of names fail with EIO. As on Linux, what a
    /// failed sync did not bring to the disk is not brought there by a later one
    /// that succeeds, unless it was written again.
    Eio,
    /// The disk is full: what needs new space fails with ENOSPC. Overwriting,
    /// removing and syncing go on.
    Enospc,
    /// Every sync takes this much longer.
    SlowFsync(Duration),
    /// Every write takes this much longer.
    SlowWrite(Duration),
}

/// How often what happened, since the disk was mounted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Calls that failed with EIO because of [`DiskFault::Eio`].
    pub eio: u64,
    /// Calls that failed with ENOSPC because of [`DiskFault::Enospc`].
    pub enospc: u64,
    /// Syncs that [`DiskFault::SlowFsync`] held up.
    pub slow_fsync: u64,
    /// Writes that [`DiskFault::SlowWrite`] held up.
    pub slow_write: u64,
    /// Power cuts.
    pub cuts: u64,
    /// Writes of data.
    pub writes: u64,
    /// Syncs of files and directories.
    pub syncs: u64,
    /// Files whose unsynced data went to the disk unasked, because too much had piled up.
    pub written_back: u64,
    /// Bytes of memory that remember what is not synced.
    pub pending_bytes: u64,
}

/// What a call wants of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// Within the space the file has.
    Overwrite,
    /// Needs new space.
    Grow,
    Sync,
    /// Removes or renames.
    Name,
}

// === impl DiskFault ===

impl DiskFault {
    /// Whether a call fails, or how much longer it takes.
    pub(crate) fn meets(self, access: Access, counts: &mut Counts) -> Result<Duration, Errno> {
        match (self, access) {
            (Self::Eio, _) => {
                counts.eio += 1;
                Err(Errno::EIO)
            }
            (Self::Enospc, Access::Grow) => {
                counts.enospc += 1;
                Err(Errno::ENOSPC)
            }
            (Self::SlowFsync(delay), Access::Sync) => {
                counts.slow_fsync += 1;
                Ok(delay)
            }
            (Self::SlowWrite(delay), Access::Overwrite | Access::Grow) => {
                counts.slow_write += 1;
                Ok(delay)
            }
            _ => Ok(Duration::ZERO),
        }
    }
}
