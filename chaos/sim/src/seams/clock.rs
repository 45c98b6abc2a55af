//! Simulated time, as turmoil counts it and `process.rs` goes on with it. A machine's wall clock may be wrong by a
//! while or for good, which `inject.rs` sets; its monotonic clock never is.

use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use proto_env::Clock;
use tokio::time::Instant;

/// When every simulation begins, in seconds since 1970: 2027-01-01T00:00:00Z,
/// within the time that the certificates of `fixtures/` are valid.
pub const EPOCH_SECONDS: u64 = 1_798_761_600;

/// The clocks of one machine; they outlive its restarts.
#[derive(Debug, Default)]
pub struct SimClock {
    /// By how many milliseconds the wall clock is ahead, for a while.
    skew_ms: AtomicI64,
    /// And for good.
    jumped_ms: AtomicI64,
}

impl SimClock {
    /// Sets the wall clock ahead (or, negative, back).
    pub fn set_skew_ms(&self, skew_ms: i64) {
        self.skew_ms.store(skew_ms, Ordering::Relaxed);
    }

    /// Moves the wall clock for good.
    pub fn jump_ms(&self, by_ms: i64) {
        self.jumped_ms.fetch_add(by_ms, Ordering::Relaxed);
    }
}

thread_local! {
    /// While a process runs: a moment of the simulation, and the same on the process's own monotonic clock.
    static PROCESS: Cell<Option<(Duration, Instant)>> = const { Cell::new(None) };
}

/// A process runs until this is dropped.
pub struct Running(());

/// A process runs, for which it is now `now` of the simulation.
pub fn begin(now: Duration) -> Running {
    PROCESS.set(Some((now, Instant::now())));
    Running(())
}

impl Drop for Running {
    fn drop(&mut self) {
        PROCESS.set(None);
    }
}

/// Time since the simulation began.
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
