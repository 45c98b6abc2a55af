//! Heartbeats and elections. openraft's own timers are fixed when it starts, so this file triggers both
//! instead. A leader sends a heartbeat every interval; a follower whose failure detector (`detector.rs`)
//! says that the leader is gone stands for election, with a pre-vote. `service.rs` reports messages from
//! the leader, and asks this file before it grants a pre-vote; `leadership.rs` asks whether this master is
//! in touch with the others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::type_config::alias::InstantOf;
use openraft::{Instant as _, ServerState};
use proto_env::Random;
use tokio::time::Instant;

use crate::consensus::Consensus;
use crate::detector::{Detector, RecentMax, Seen, Timers};
use crate::network::lock;
use crate::preference::Preference;
use crate::raft_types::TypeConfig;

/// The election state of this master: its failure detector, and what it has heard.
pub(crate) struct Elections {
    timers: Timers,
    detector: Mutex<Detector>,
    /// Number of messages from leaders of the term that was current at the time.
    heard: AtomicU64,
    syncs: Arc<SyncTimes>,
    /// A time before everything that openraft does, from which acknowledgements are measured.
    began: InstantOf<TypeConfig>,
}

/// How long recent writes of the log took until they were durable.
#[derive(Debug, Default)]
pub(crate) struct SyncTimes(Mutex<Syncs>);

#[derive(Debug, Default)]
struct Syncs {
    /// Start times of writes that are not durable yet, oldest first.
    under_way: VecDeque<Instant>,
    longest: RecentMax,
}

// === impl SyncTimes ===

impl SyncTimes {
    /// Notes that a write begins.
    pub(crate) fn begin(&self) {
        lock(&self.0).under_way.push_back(Instant::now());
    }

    /// Notes that the oldest write in progress is durable.
    pub(crate) fn end(&self) {
        let mut syncs = lock(&self.0);
        if let Some(began) = syncs.under_way.pop_front() {
            let now = Instant::now();
            syncs.longest.add(now, now.saturating_duration_since(began));
        }
    }

    /// Returns how long the oldest write in progress has waited; zero without one.
    fn oldest_waits(&self, now: Instant) -> Duration {
        let syncs = lock(&self.0);
        syncs.under_way.front().map_or(Duration::ZERO, |began| now.saturating_duration_since(*began))
    }

    /// Returns the duration of the longest recent write, including one in progress.
    fn longest(&self, now: Instant) -> Duration {
        let mut syncs = lock(&self.0);
        syncs.longest.turn(now);
        let waits = syncs.under_way.front().map(|began| now.saturating_duration_since(*began));
        syncs.longest.get().max(waits.unwrap_or_default())
    }
}

// === impl Elections ===

impl Elections {
    pub(crate) fn new(timers: Timers, syncs: Arc<SyncTimes>, random: &dyn Random) -> Self {
        let detector = Mutex::new(Detector::new(timers, jitter(timers, random)));
        Self { timers, detector, heard: AtomicU64::new(0), syncs, began: InstantOf::<TypeConfig>::now() }
    }

    /// Notes a silence that a live leader ended.
    #[cfg(test)]
    pub(crate) fn remember_silence(&self, silence: Duration) {
        lock(&self.detector).remember_silence(Instant::now(), silence);
    }

    /// Notes a message from the leader of the current term.
    pub(crate) fn heard(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether the leader has been silent for so long that another one may be elected.
    pub(crate) fn misses_leader(&self) -> bool {
        lock(&self.detector).misses_leader()
    }

    /// Returns how long the oldest write of the log in progress has waited to become durable.
    pub(crate) fn oldest_write_waits(&self) -> Duration {
        self.syncs.oldest_waits(Instant::now())
    }

    /// Returns whether this follower has heard from the leader recently.
    pub(crate) fn in_touch_with_leader(&self) -> bool {
        lock(&self.detector).in_touch_with_leader()
    }

    /// Returns whether a quorum has confirmed this leader recently.
    pub(crate) fn in_touch_with_quorum(&self) -> bool {
        lock(&self.detector).in_touch_with_quorum()
    }
}

/// Returns a random time between the least and the greatest election timeout.
fn jitter(timers: Timers, random: &dyn Random) -> Duration {
    let mut bytes = [0; 8];
    random.fill(&mut bytes);
    let range = timers.election_max.saturating_sub(timers.election_min);
    let micros = u64::try_from(range.as_micros()).unwrap_or(u64::MAX).max(1);
    timers.election_min + Duration::from_micros(u64::from_le_bytes(bytes) % micros)
}

/// Sends heartbeats and stands for elections until the node stops.
pub(crate) async fn run(consensus: Arc<Consensus>) {
    let interval = lock(&consensus.elections.detector).interval();
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut beat_at = Instant::now();
    let gathered = [consensus.proposals.gathered(), consensus.reads.gathered()];
    let mut preference = Preference::new(gathered, consensus.elections.timers.heartbeat / 2);
    loop {
        tokio::select! {
            biased;
            () = consensus.stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if !consensus.look_after_leader(&mut beat_at, &mut preference).await {
            return;
        }
    }
}

impl Consensus {
    /// Looks at the leader once, and beats or stands for election if that is due. Returns false once
    /// openraft has ended.
    async fn look_after_leader(&self, beat_at: &mut Instant, preference: &mut Preference) -> bool {
        let elections = &self.elections;
        let now = Instant::now();
        let (state, single, votes, seen) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let vote = &metrics.vote;
            let seen = Seen {
                heard: elections.heard.load(Ordering::Relaxed),
                acknowledged: metrics.last_quorum_acked.map(|at| *at - elections.began),
                vote: (vote.leader_id.term, vote.leader_id.voted_for, vote.committed),
                sync: elections.syncs.longest(now),
            };
            let votes = metrics.membership_config.voter_ids().any(|id| id == self.node_id);
            let single = votes && metrics.membership_config.voter_ids().count() == 1;
            (metrics.state, single, votes, seen)
        };
        let quarantined = self.quarantined().is_some();
        let stand = {
            let mut detector = lock(&elections.detector);
            let late = detector.look(now, seen);
            self.runtime.set_preferred(preference.look(now, late));
            if late > elections.timers.election_max / 2 {
                tracing::warn!(?late, "this master was held up: the machine is overloaded, or stood still");
            }
            match state {
                ServerState::Leader => false,
                // The only voter needs no other master's vote, so it does not wait.
                ServerState::Follower if single => true,
                // A replica that differs from the others must not lead.
                _ if votes && !quarantined && detector.should_stand() => {
                    let (silent, patience) = (detector.leader_silence(), detector.leader_patience());
                    tracing::info!(?silent, ?patience, "no leader is heard; this master stands for election");
                    true
                }
                _ => false,
            }
        };
        if stand {
            lock(&elections.detector).stood(jitter(elections.timers, self.env.random.as_ref()));
            return self.raft.trigger().elect(!single).await.is_ok();
        }
        if state == ServerState::Leader && now >= *beat_at {
            *beat_at = now + elections.timers.heartbeat;
            return self.raft.trigger().heartbeat().await.is_ok();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_under_way_counts_before_it_is_durable() {
        let (syncs, ms) = (SyncTimes::default(), Duration::from_millis);
        syncs.begin();
        tokio::time::advance(ms(30)).await;
        syncs.begin();
        assert_eq!(syncs.longest(Instant::now()), ms(30));
        syncs.end();
        tokio::time::advance(ms(70)).await;
        assert_eq!(syncs.longest(Instant::now()), ms(70));
        syncs.end();
        assert_eq!(syncs.longest(Instant::now()), ms(70));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_write_is_forgotten_though_no_other_follows() {
        let syncs = SyncTimes::default();
        syncs.begin();
        tokio::time::advance(Duration::from_secs(3)).await;
        syncs.end();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(syncs.longest(Instant::now()), Duration::from_secs(3));
        for _ in 0..2 {
            tokio::time::advance(Duration::from_secs(10)).await;
            let _ = syncs.longest(Instant::now());
        }
        assert_eq!(syncs.longest(Instant::now()), Duration::ZERO);
    }

    #[test]
    fn the_random_time_is_between_its_bounds() {
        let ms = Duration::from_millis;
        let timers = Timers { heartbeat: ms(50), election_min: ms(100), election_max: ms(250) };
        let drawn: Vec<_> = (0..200).map(|_| jitter(timers, &proto_env::SystemRandom)).collect();
        assert!(drawn.iter().all(|time| (ms(100)..ms(250)).contains(time)), "{drawn:?}");
        assert!(drawn.iter().max().unwrap().saturating_sub(*drawn.iter().min().unwrap()) > ms(50));
    }
}
