//! Decides whether the threads of consensus run before all others. They do while the machine is idle, since
//! every request then takes a shorter way, and while something delays them, since nothing else keeps
//! elections away. They do not while this master's own clients keep it busy: whoever runs at once for each
//! request gathers few of them, and most of a request's cost is that of its batch
//! (`ops/docs/decisions/raft-under-load.md`). `elections.rs` looks, `proposer.rs` and `read.rs` count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Time over which requests are counted.
const WINDOW: Duration = Duration::from_millis(100);
/// Requests in a window, and requests in a batch, from which on gathering counts for more than haste.
const BUSY_REQUESTS: u64 = 50;
const BUSY_BATCH: u64 = 3;
/// Requests in a batch below which haste counts for more again.
const CALM_BATCH: u64 = 2;
/// How long the threads are preferred after they were delayed.
const AFTER_DELAY: Duration = Duration::from_secs(30);

/// Number of requests and of the batches (or rounds) that they shared, since the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gathered(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    batches: AtomicU64,
}

impl Gathered {
    /// Counts one batch of this many requests.
    pub(crate) fn add(&self, requests: usize) {
        self.0.requests.fetch_add(requests as u64, Ordering::Relaxed);
        self.0.batches.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> (u64, u64) {
        (self.0.requests.load(Ordering::Relaxed), self.0.batches.load(Ordering::Relaxed))
    }
}

/// Whether the threads of consensus are preferred, and what decides about it next.
#[derive(Debug)]
pub(crate) struct Preference {
    gathered: [Gathered; 2],
    /// Delay of a thread from which on it counts as delayed.
    delay: Duration,
    preferred: bool,
    delayed_at: Option<Instant>,
    /// When the present window began, and the counts at that time.
    window: Option<(Instant, [(u64, u64); 2])>,
}

impl Preference {
    pub(crate) fn new(gathered: [Gathered; 2], delay: Duration) -> Self {
        Self { gathered, delay, preferred: true, delayed_at: None, window: None }
    }

    /// Takes in how late a task of these threads ran at `now`; returns whether they are to be preferred.
    pub(crate) fn look(&mut self, now: Instant, late: Duration) -> bool {
        if late > self.delay {
            self.delayed_at = Some(now);
        }
        let delayed = self.delayed_at.is_some_and(|at| now.saturating_duration_since(at) < AFTER_DELAY);
        let counts = || self.gathered.each_ref().map(Gathered::get);
        let (began, before) = *self.window.get_or_insert_with(|| (now, counts()));
        if delayed {
            self.preferred = true;
        } else if now.saturating_duration_since(began) >= WINDOW {
            let counts = counts();
            // Reads and writes are gathered apart, so the busier of the two decides.
            let busy = before.iter().zip(&counts).any(|(before, after)| {
                let (requests, batches) = (after.0 - before.0, after.1 - before.1);
                let least = if self.preferred { BUSY_BATCH } else { CALM_BATCH };
                requests >= BUSY_REQUESTS && requests >= least * batches
            });
            self.preferred = !busy;
            self.window = Some((now, counts));
        }
        self.preferred
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(25);

    struct Fixture {
        preference: Preference,
        gathered: [Gathered; 2],
        now: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            let gathered = [Gathered::default(), Gathered::default()];
            let mut preference = Preference::new(gathered.clone(), DELAY);
            let now = Instant::now();
            assert!(preference.look(now, Duration::ZERO));
            Self { preference, gathered, now }
        }

        /// Lets a window with `batches` batches of `size` requests pass.
        fn window(&mut self, kind: usize, batches: usize, size: usize) -> bool {
            (0..batches).for_each(|_| self.gathered[kind].add(size));
            self.now += WINDOW;
            self.preference.look(self.now, Duration::ZERO)
        }
    }

    #[test]
    fn many_requests_that_share_batches_end_the_preference_and_few_bring_it_back() {
        for kind in [0, 1] {
            let mut fixture = Fixture::new();
            assert!(fixture.window(kind, 200, 1), "one client after the other");
            assert!(fixture.window(kind, 3, 10), "a burst");
            assert!(fixture.window(kind, 100, 2));
            assert!(!fixture.window(kind, 100, 3));
            assert!(!fixture.window(kind, 100, 2), "does not come and go");
            assert!(fixture.window(kind, 100, 1));
        }
    }

    #[test]
    fn the_idle_of_two_kinds_does_not_hide_the_busy_one() {
        let mut fixture = Fixture::new();
        (0..1000).for_each(|_| fixture.gathered[0].add(1));
        assert!(!fixture.window(1, 50, 20));
    }

    #[test]
    fn a_delay_brings_the_preference_back_at_once_and_for_a_while() {
        let mut fixture = Fixture::new();
        assert!(!fixture.window(0, 100, 10));
        assert!(!fixture.preference.look(fixture.now, DELAY));
        let delayed = fixture.now;
        assert!(fixture.preference.look(fixture.now, DELAY * 2));
        while fixture.now < delayed + AFTER_DELAY - WINDOW {
            assert!(fixture.window(0, 100, 10), "{:?}", fixture.now - delayed);
        }
        assert!(!fixture.window(0, 100, 10));
    }
}
