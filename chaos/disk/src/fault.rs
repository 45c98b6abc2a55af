//! Faults of the disk other than a power cut, and counters of how often they took effect.

use std::time::{Duration, Instant};

use fuser::Errno;
use serde::{Deserialize, Serialize};

/// A fault of the disk; it stays until it is cleared or replaced by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DiskFault {
    /// Reads, writes, syncs and changes of names fail with EIO. As on Linux, data whose sync failed is not
    /// written by a later sync that succeeds, unless it was written again.
    Eio,
    /// The disk is full: operations that need new space fail with ENOSPC. Overwriting, removing and syncing
    /// work.
    Enospc,
    /// Every sync takes this much longer.
    SlowFsync(Duration),
    /// Every write takes this much longer.
    SlowWrite(Duration),
    /// Writes and syncs are done one after the other, at most this many a second.
    Iops(u32),
}

/// Number of events since the disk was mounted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Number of calls that failed with EIO because of [`DiskFault::Eio`].
    pub eio: u64,
    /// Number of calls that failed with ENOSPC because of [`DiskFault::Enospc`].
    pub enospc: u64,
    /// Number of syncs that [`DiskFault::SlowFsync`] delayed.
    pub slow_fsync: u64,
    /// Number of writes that [`DiskFault::SlowWrite`] delayed.
    pub slow_write: u64,
    /// Number of writes and syncs that [`DiskFault::Iops`] delayed.
    #[serde(default)]
    pub limited: u64,
    /// Number of power cuts.
    pub cuts: u64,
    /// Number of writes of data.
    pub writes: u64,
    /// Number of syncs of files and directories.
    pub syncs: u64,
    /// Number of files whose unsynced data was written back early, because its memory exceeded the limit.
    pub written_back: u64,
    /// Memory for data that is not synced, in bytes.
    pub pending_bytes: u64,
}

/// Kind of access that a call makes to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// Writes within the file's present space.
    Overwrite,
    /// Writes that need new space.
    Grow,
    Sync,
    /// Removes or renames a file.
    Name,
}

// === impl DiskFault ===

impl DiskFault {
    /// Returns how much longer a call takes; fails if the fault makes the call fail.
    ///
    /// `now` is the time of the call, `free` the time at which a disk limited in operations has done all
    /// earlier ones.
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
        // Idle time does not accumulate: the next operation waits as usual.
        let later = now + Duration::from_secs(1);
        assert_eq!(ask(Access::Sync, later), Duration::from_millis(10));
        assert_eq!(counts.limited, 3);
    }
}
