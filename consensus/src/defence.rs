//! The state with which a master defends itself: its alarms, whether its replica may serve, the space on its
//! disk, the lock under which its replicated state changes, and why it has failed for good. `compare.rs`,
//! `rebuild.rs`, `disk_space.rs` and `fence.rs` act on it; every part asks it before it serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proto_env::Clock;
use tokio::sync::{MutexGuard, watch};

use crate::alarms::{AlarmKind, Alarms};
use crate::disk_space::DiskReserve;
use crate::state_machine::{Applied, SharedApplied};

/// The state of replica comparison, disk space, rebuilds and failure.
pub(crate) struct Defence {
    alarms: Alarms,
    clock: Arc<dyn Clock>,
    /// Why this replica does not serve; `None`: it serves.
    quarantine: watch::Sender<Option<String>>,
    reserve: DiskReserve,
    /// Whether less space is free on the disk than has to be kept free.
    short_of_space: AtomicBool,
    /// Free bytes on the disk, as of the last check.
    free_bytes: AtomicU64,
    /// The last applied entry; locked while the replicated state changes.
    applied: SharedApplied,
    /// The log index up to which the store is durable.
    durable: Arc<AtomicU64>,
    /// Why this member has failed for good; empty while it has not.
    failure: watch::Sender<String>,
}

impl Defence {
    pub(crate) fn new(
        clock: Arc<dyn Clock>,
        reserve: DiskReserve,
        applied: SharedApplied,
        durable: Arc<AtomicU64>,
    ) -> Self {
        Self {
            alarms: Alarms::default(),
            clock,
            quarantine: watch::Sender::default(),
            reserve,
            short_of_space: AtomicBool::new(false),
            free_bytes: AtomicU64::new(0),
            applied,
            durable,
            failure: watch::Sender::default(),
        }
    }

    /// Returns this master's alarms, and the last ones heard from others.
    pub(crate) fn alarms(&self) -> &Alarms {
        &self.alarms
    }

    /// Raises an alarm of this master, or updates its reason.
    pub(crate) fn raise(&self, kind: AlarmKind, reason: String) {
        self.alarms.raise(kind, reason, self.clock.as_ref());
    }

    /// Returns why this replica does not serve; `None`: it serves.
    pub(crate) fn quarantined(&self) -> Option<String> {
        self.quarantine.borrow().clone()
    }

    /// Sets why this replica does not serve; `None`: it serves.
    pub(crate) fn set_quarantine(&self, reason: Option<String>) {
        self.quarantine.send_replace(reason);
    }

    /// Watches why this replica does not serve.
    #[cfg(test)]
    pub(crate) fn watch_quarantine(&self) -> watch::Receiver<Option<String>> {
        self.quarantine.subscribe()
    }

    /// Returns the space to keep free on the disk.
    pub(crate) fn reserve(&self) -> &DiskReserve {
        &self.reserve
    }

    /// Notes a check of the disk: its free bytes, and whether that is less than has to be kept free.
    pub(crate) fn note_space(&self, free_bytes: u64, short: bool) {
        self.free_bytes.store(free_bytes, Ordering::Relaxed);
        self.short_of_space.store(short, Ordering::Release);
    }

    /// Returns whether less space is free on the disk than has to be kept free.
    pub(crate) fn is_short_of_space(&self) -> bool {
        self.short_of_space.load(Ordering::Acquire)
    }

    /// Returns the free bytes on the disk, as of the last check; 0 if not known.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// Waits until nothing is applied any more, and keeps it so while the guard lives.
    pub(crate) async fn hold_state(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock().await
    }

    /// Notes that the store is durable up to a log index.
    pub(crate) fn is_durable_to(&self, index: u64) {
        self.durable.fetch_max(index, Ordering::AcqRel);
    }

    /// Declares this member failed for good.
    pub(crate) fn fail(&self, reason: String) {
        self.failure.send_replace(reason);
    }

    /// Returns whether this member has failed for good.
    pub(crate) fn has_failed(&self) -> bool {
        !self.failure.borrow().is_empty()
    }

    /// Waits until this member has failed for good and returns why.
    pub(crate) async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        match failure.wait_for(|failure| !failure.is_empty()).await {
            Ok(reason) => reason.clone(),
            // The sender is gone only together with this member.
            Err(_) => std::future::pending().await,
        }
    }
}
