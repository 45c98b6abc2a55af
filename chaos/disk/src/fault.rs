//! What can be wrong with the disk besides losing power, and how often it was.

use std::time::{Duration, Instant};

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
    /// Writes and syncs go one after the other, so many a second.
    Iops(u32),
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
    /// Writes and syncs that [`DiskFault::Iops`] held up.
    #[serde(default)]
    pub limited: u64,
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
    ///
    /// `now` is when it comes, and `free` when a disk of so many operations a second has done all before it.
    pub(crate) fn meets(
        self,
        access: Access,
        counts: &mut Counts,
        now: Instant,
        free: &mut Instant,
    ) -> Result<Duration, Errno> {
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
            (Self::Iops(limit), Access::Overwrite | Access::Grow | Access::Sync) => {
                counts.limited += 1;
                *free = (*free).max(now) + Duration::from_secs(1) / limit.max(1);
                Ok(*free - now)
            }
            _ => Ok(Duration::ZERO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_of_so_many_operations_a_second_does_them_one_after_the_other() {
        let (mut counts, now) = (Counts::default(), Instant::now());
        let (mut free, fault) = (now, DiskFault::Iops(100));
        let mut ask = |access, now| fault.meets(access, &mut counts, now, &mut free).unwrap();
        assert_eq!(ask(Access::Grow, now), Duration::from_millis(10));
        assert_eq!(ask(Access::Sync, now), Duration::from_millis(20));
        assert_eq!(ask(Access::Read, now), Duration::ZERO);
        // After a rest nothing has been saved up.
        let later = now + Duration::from_secs(1);
        assert_eq!(ask(Access::Sync, later), Duration::from_millis(10));
        assert_eq!(counts.limited, 3);
    }
}
