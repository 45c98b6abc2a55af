//! Time scale of a simulation, by the distance between its masters: the tick of simulated time, latencies,
//! the masters' timers, and how often the runner looks. `world.rs` and `run.rs` use it.

use std::time::Duration;

use chaos_spec::experiment::Distance;
use master_node::config::Timers;

/// Times that follow from the distance between masters.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Step of simulated time; nothing happens between two ticks.
    pub tick: Duration,
    /// Maximum latency of a link without a fault.
    pub latency: Duration,
    /// Interval at which a worker looks at its pods.
    pub look: Duration,
    /// Maximum time until the pods of a worker that is away run elsewhere: four seconds of silence, five
    /// seconds that pods tolerate, and the time to start them.
    pub moved: Duration,
    /// Factor by which times are longer than with near masters.
    times: u32,
}

impl Scale {
    /// Returns the scale for a distance.
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

    /// Converts a duration that is given for near masters to this scale.
    pub fn stretch(self, near: Duration) -> Duration {
        near * self.times
    }

    /// Converts a duration that is given for near masters to ticks of this scale, at least one.
    pub fn ticks(self, near: Duration) -> u64 {
        u64::try_from(self.stretch(near).as_nanos() / self.tick.as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    /// Returns the masters' timers; those for a silent worker do not depend on the distance of masters.
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
