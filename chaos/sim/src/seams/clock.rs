//! Simulated time, as turmoil counts it and `process.rs` advances it. `inject.rs` can set a machine's wall
//! clock wrong, for a while or for good; its monotonic clock is never wrong.

use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use proto_env::Clock;
use tokio::time::Instant;

/// Start of every simulation, in seconds since 1970: 2027-01-01T00:00:00Z, within the time that the
/// certificates of `fixtures/` are valid.
pub const EPOCH_SECONDS: u64 = 1_798_761_600;

/// Clocks of one machine; they outlive its restarts.
#[derive(Debug, Default)]
pub struct SimClock {
    /// Milliseconds by which the wall clock is ahead while a fault lasts; negative if it is behind.
    skew_ms: AtomicI64,
    /// Milliseconds by which the wall clock was set ahead for good; negative if it was set back.
    jumped_ms: AtomicI64,
}

impl SimClock {
    /// Sets how far the wall clock is ahead for now; negative if behind, 0 if right.
    pub fn set_skew_ms(&self, skew_ms: i64) {
        self.skew_ms.store(skew_ms, Ordering::Relaxed);
    }

    /// Moves the wall clock for good; negative moves it back.
    pub fn jump_ms(&self, by_ms: i64) {
        self.jumped_ms.fetch_add(by_ms, Ordering::Relaxed);
    }
}

thread_local! {
    /// While a process runs: a moment in simulated time, and the same moment on the process's monotonic
    /// clock.
    static PROCESS: Cell<Option<(Duration, Instant)>> = const { Cell::new(None) };
}

/// Guard of [`begin`]: the process counts as running until it is dropped.
pub struct Running(());

/// Marks that a process runs, for which the simulated time is now `now`.
pub fn begin(now: Duration) -> Running {
    PROCESS.set(Some((now, Instant::now())));
    Running(())
}

impl Drop for Running {
    fn drop(&mut self) {
        PROCESS.set(None);
    }
}

/// Returns the time since the simulation began.
pub fn elapsed() -> Duration {
    match PROCESS.get() {
        Some((begun, at)) => begun + at.elapsed(),
        None => turmoil::sim_elapsed().unwrap_or_default(),
    }
}

impl Clock for SimClock {
    fn now(&self) -> SystemTime {
        let right = SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH_SECONDS) + elapsed();
        let skew_ms = self.skew_ms.load(Ordering::Relaxed) + self.jumped_ms.load(Ordering::Relaxed);
        let by = Duration::from_millis(skew_ms.unsigned_abs());
        if skew_ms < 0 { right - by } else { right + by }
    }

    fn monotonic(&self) -> Duration {
        elapsed()
    }
}
