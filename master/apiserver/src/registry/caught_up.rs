//! The last time at which the local replica was known to hold every acknowledged write; `/readyz` depends on
//! it. Every read barrier records it, so that a busy master's probes cost nothing and an idle master's ask
//! the leader every few seconds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Age up to which a catch-up counts as recent, and the replica as ready. A balancer resets every connection
/// of a master that is not ready, so a replica that is only late under load must stay ready.
pub const RECENT: Duration = Duration::from_secs(5);

/// Time of the last catch-up in milliseconds of the monotonic clock, plus one; 0 for never.
#[derive(Debug, Default)]
pub struct CaughtUp(AtomicU64);

impl CaughtUp {
    /// Records that a read barrier which began at `began` has been passed.
    pub fn note(&self, began: Duration) {
        self.0.fetch_max(millis(began) + 1, Ordering::Relaxed);
    }

    /// Returns whether a read barrier was passed that began at most `age` before `now`.
    pub fn within(&self, now: Duration, age: Duration) -> bool {
        match self.0.load(Ordering::Relaxed) {
            0 => false,
            last => millis(now).saturating_sub(last - 1) <= millis(age),
        }
    }
}

fn millis(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_current_from_its_first_barrier_until_the_last_one_is_old() {
        let caught_up = CaughtUp::default();
        assert!(!caught_up.within(Duration::ZERO, RECENT), "a replica that never caught up");
        caught_up.note(Duration::ZERO);
        assert!(caught_up.within(RECENT, RECENT));
        assert!(!caught_up.within(RECENT + Duration::from_millis(1), RECENT));
        caught_up.note(Duration::from_secs(60));
        caught_up.note(Duration::from_secs(59));
        assert!(
            caught_up.within(Duration::from_secs(60) + RECENT, RECENT),
            "an older barrier that ended later"
        );
    }
}
