//! How far the masters of an experiment are from each other, and what follows:
//! the tick of simulated time, latencies, the masters' timers, and how often the
//! runner looks. `world.rs` and `run.rs` go by it.

use std::time::Duration;

use chaos_spec::experiment::Distance;
use master_node::config::Timers;

/// What follows from a distance.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// The unit of simulated time, between two of which nothing happens.
    pub tick: Duration,
    /// The longest latency of a link that nothing is wrong with.
    pub latency: Duration,
    /// How often a worker looks at its pods.
    pub look: Duration,
    /// How long the pods of a worker that is away may take to run elsewhere: four seconds of silence, five that
    /// pods tolerate, and what follows.
    pub moved: Duration,
    /// How many times slower than side by side.
    times: u32,
}

impl Scale {
    /// That of a distance.
    pub fn of(distance: Distance) -> Self {
        match distance {
            Distance::Near => Self {
                tick: Duration::from_millis(1),
                latency: Duration::from_millis(2),
                look: Duration::from_millis(500),
                moved: Duration::from_secs(15),
                times: 1,
            },
            Distance::Far => Self {
                tick: Duration::from_millis(40),
                latency: Duration::from_millis(80),
                look: Duration::from_secs(3),
                moved: Duration::from_secs(40),
                times: 10,
            },
        }
    }

    /// What takes this long with masters side by side.
    pub fn stretch(self, near: Duration) -> Duration {
        near * self.times
    }

    /// The same in ticks, at least one.
    pub fn ticks(self, near: Duration) -> u64 {
        u64::try_from(self.stretch(near).as_nanos() / self.tick.as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    /// The timers of the masters. How long a worker may be silent does not depend on masters.
    pub fn timers(self) -> Timers {
        let (near, times) = (Timers::default(), u64::from(self.times));
        Timers {
            heartbeat_ms: near.heartbeat_ms * times,
            election_min_ms: near.election_min_ms * times,
            election_max_ms: near.election_max_ms * times,
            ..near
        }
    }
}
