//! The failure detector of one master: measures how long nothing was heard from the leader (on the leader:
//! from a quorum), and decides whether that is long enough to act. It is pure and has no clock of its own;
//! `elections.rs` feeds it and acts on it.
//!
//! Two rules keep a busy master from declaring a live leader dead:
//!
//! - **Only time in which this master could have heard something counts.** Two looks are meant to be
//!   [`Detector::interval`] apart. Of the time between them at most twice that interval counts, or an
//!   eighth of the time (at most a quarter of a lease) if that is more. A master that was itself stopped or
//!   starved so gives the leader a full window before it stands for election.
//! - **The patience follows measured silences.** The longest recent silence that ended with a sign of life
//!   from the same leader is added twice, up to [`EXTRA_LEASES`], and forgotten after a while. A silence
//!   that ended with another leader does not count: it says nothing about how late a live leader may be.
//!
//! And one rule lets elections end on slow disks: **a vote is given the time that it needs to reach the
//! disks** before the next one is asked for ([`VOTE_WRITES`]).

use std::time::Duration;

use tokio::time::Instant;

/// Maximum number of leases by which the patience grows.
const EXTRA_LEASES: u32 = 8;
/// Number of writes that follow one another before a leader elected is heard: the candidate's vote, those of
/// the others, and the leader's own.
const VOTE_WRITES: u32 = 3;
/// Leases without an answer from a quorum after which a leader declares its quorum lost.
const QUORUM_LOST_LEASES: u32 = 3;
/// How long the longest silence is remembered: for one to two of these periods.
const MEMORY: Duration = Duration::from_secs(10);
/// Number of looks at the detector in one heartbeat interval.
const LOOKS_PER_HEARTBEAT: u32 = 5;
/// Divisor of the time between two late looks: that share of it counts as silence, so that a master that is
/// always late still notices a dead leader. The second divides the lease and bounds that share.
const LATE_SHARE: u32 = 8;
const LATE_LEASE_SHARE: u32 = 4;

/// The timers that a master is configured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timers {
    /// Time between two heartbeats.
    pub(crate) heartbeat: Duration,
    /// Least and greatest random time that a master waits before it stands for election.
    pub(crate) election_min: Duration,
    pub(crate) election_max: Duration,
}

/// What one look at this master's state sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Number of messages heard from the leader of the current term.
    pub(crate) heard: u64,
    /// Latest time for which a quorum has confirmed this leader, since a fixed but arbitrary time; `None`:
    /// never.
    pub(crate) acknowledged: Option<Duration>,
    /// The vote of this master: term, candidate, and whether the candidate has become the leader.
    pub(crate) vote: (u64, u64, bool),
    /// Duration of the log's slowest recent write, including one still running.
    pub(crate) sync: Duration,
}

/// The longest duration added in the last one to two [`MEMORY`] periods.
#[derive(Debug, Default)]
pub(crate) struct RecentMax {
    since: Option<Instant>,
    now: Duration,
    before: Duration,
}

/// How long the leader or a quorum has given no sign of life.
#[derive(Debug, Default)]
struct Silence {
    for_now: Duration,
    longest: RecentMax,
}

/// The failure detector of one master.
#[derive(Debug)]
pub(crate) struct Detector {
    timers: Timers,
    looked: Option<(Instant, Seen)>,
    leader: Silence,
    quorum: Silence,
    /// The random part of the patience before this master stands for election next.
    jitter: Duration,
    /// Silence of the leader when this master stood last without being elected; `None`: it has not stood
    /// since.
    stood_at: Option<Duration>,
}

// === impl RecentMax ===

impl RecentMax {
    pub(crate) fn add(&mut self, now: Instant, value: Duration) {
        self.turn(now);
        self.now = self.now.max(value);
    }

    /// Returns the longest recent duration.
    pub(crate) fn get(&self) -> Duration {
        self.now.max(self.before)
    }

    /// Forgets what is too old at `now`.
    pub(crate) fn turn(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since);
        if passed >= MEMORY {
            self.before = if passed < MEMORY * 2 { self.now } else { Duration::ZERO };
            self.now = Duration::ZERO;
            self.since = Some(now);
        }
    }
}

// === impl Silence ===

impl Silence {
    /// Adds `passed` to the silence, and ends the silence if there was a sign of life.
    fn pass(&mut self, now: Instant, passed: Duration, sign: bool) {
        self.for_now += passed;
        self.longest.turn(now);
        if sign {
            let silent = std::mem::take(&mut self.for_now);
            self.longest.add(now, silent);
        }
    }
}

// === impl Detector ===

impl Detector {
    /// Makes a detector that has heard nothing yet; for `jitter` see [`Self::stood`].
    pub(crate) fn new(timers: Timers, jitter: Duration) -> Self {
        let (looked, leader, quorum, stood_at) = Default::default();
        Self { timers, looked, leader, quorum, jitter, stood_at }
    }

    /// Notes a silence that a live leader ended.
    #[cfg(test)]
    pub(crate) fn remember_silence(&mut self, now: Instant, silence: Duration) {
        self.leader.longest.add(now, silence);
    }

    /// Returns the time between two looks.
    pub(crate) fn interval(&self) -> Duration {
        self.timers.heartbeat / LOOKS_PER_HEARTBEAT
    }

    /// Takes in what is seen at `now`; returns how late this look is.
    pub(crate) fn look(&mut self, now: Instant, seen: Seen) -> Duration {
        let Some((at, before)) = self.looked.replace((now, seen)) else { return Duration::ZERO };
        let passed = now.saturating_duration_since(at);
        let interval = self.interval();
        let late = (passed / LATE_SHARE).min(self.timers.election_max / LATE_LEASE_SHARE);
        let counted = passed.min((interval * 2).max(late));
        if before.vote != seen.vote {
            // Another leader or candidate gets a full window, too.
            self.leader.for_now = Duration::ZERO;
            self.quorum.for_now = Duration::ZERO;
            self.stood_at = None;
        }
        let leads_still = before.vote == seen.vote;
        self.leader.pass(now, counted, before.heard != seen.heard && leads_still);
        self.quorum.pass(now, counted, before.acknowledged != seen.acknowledged && leads_still);
        if before.heard != seen.heard {
            self.stood_at = None;
        }
        passed.saturating_sub(interval)
    }

    /// Returns whether this master should stand for election: it has heard nothing from a leader for the
    /// lease, the measured extra and the random time, or its last vote has failed.
    pub(crate) fn should_stand(&self) -> bool {
        match self.stood_at {
            Some(_) => self.vote_has_failed(),
            None => self.leader.for_now >= self.leader_patience() + self.jitter,
        }
    }

    /// Returns whether this master has stood and nobody was elected in the time that writing the votes takes
    /// and the random time.
    fn vote_has_failed(&self) -> bool {
        self.stood_at.is_some_and(|at| self.leader.for_now >= at + self.vote_time() + self.jitter)
    }

    /// Returns how long the votes of one election may take to reach the disks.
    fn vote_time(&self) -> Duration {
        let sync = self.looked.map_or(Duration::ZERO, |(_, seen)| seen.sync);
        (sync * VOTE_WRITES).min(self.timers.election_max * EXTRA_LEASES)
    }

    /// Notes that this master stands for election. `jitter`, between the least and the greatest election
    /// timeout, is the random part of the time after which it stands again.
    pub(crate) fn stood(&mut self, jitter: Duration) {
        self.stood_at = Some(self.leader.for_now);
        self.jitter = jitter;
    }

    /// Returns how long the leader has been silent, times in which this master itself stood still left out.
    pub(crate) fn leader_silence(&self) -> Duration {
        self.leader.for_now
    }

    /// Returns whether the leader has been silent for so long that another one may be elected.
    pub(crate) fn misses_leader(&self) -> bool {
        self.leader.for_now >= self.leader_patience()
    }

    /// Returns whether a leader was heard from recently: within a few leases, which leaves time for an
    /// election.
    pub(crate) fn in_touch_with_leader(&self) -> bool {
        self.looked.is_some_and(|(_, seen)| seen.heard > 0)
            && self.leader.for_now <= self.timers.election_max * QUORUM_LOST_LEASES + self.extra(&self.leader)
    }

    /// Returns whether a quorum has confirmed this leader recently.
    pub(crate) fn in_touch_with_quorum(&self) -> bool {
        let syncs = self.looked.map_or(Duration::ZERO, |(_, seen)| seen.sync);
        let extra = self.extra(&self.quorum).max(syncs * 2).min(self.timers.election_max * EXTRA_LEASES);
        self.quorum.for_now <= self.timers.election_max * QUORUM_LOST_LEASES + extra
    }

    /// Returns the patience added because of measured silences; zero on a calm machine.
    fn extra(&self, silence: &Silence) -> Duration {
        let expected = self.timers.heartbeat * 2;
        let beyond = silence.longest.get().saturating_sub(expected);
        (beyond * 2).min(self.timers.election_max * EXTRA_LEASES)
    }

    /// Returns the silence after which the leader is missed, without the random part.
    pub(crate) fn leader_patience(&self) -> Duration {
        let led = self.looked.is_none_or(|(_, seen)| seen.vote.2);
        if led {
            self.timers.election_max + self.extra(&self.leader)
        } else {
            // A master that only voted for a candidate need not wait for a lease.
            self.extra(&self.leader).max(self.vote_time())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_millis(50);
    const TIMERS: Timers = Timers {
        heartbeat: HEARTBEAT,
        election_min: Duration::from_millis(100),
        election_max: Duration::from_millis(250),
    };
    const JITTER: Duration = Duration::from_millis(150);

    /// A detector, its clock, and the state that it sees next.
    struct Fixture {
        detector: Detector,
        now: Instant,
        seen: Seen,
    }

    impl Fixture {
        fn new() -> Self {
            let seen = Seen { heard: 0, acknowledged: None, vote: (1, 1, true), sync: Duration::ZERO };
            let mut new = Self { detector: Detector::new(TIMERS, JITTER), now: Instant::now(), seen };
            let _ = new.detector.look(new.now, new.seen);
            new.led_for(Duration::from_secs(1));
            new
        }

        /// Looks at every interval for `time`; nothing is heard.
        fn silent_for(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.look_after(self.detector.interval());
            }
        }

        fn look_after(&mut self, time: Duration) {
            self.now += time;
            let _ = self.detector.look(self.now, self.seen);
        }

        fn beat(&mut self) {
            self.seen.heard += 1;
            self.seen.acknowledged = Some(Duration::from_nanos(self.seen.heard));
            self.look_after(self.detector.interval());
        }

        /// A heartbeat comes every heartbeat interval for `time`.
        fn led_for(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.silent_for(HEARTBEAT - self.detector.interval());
                self.beat();
            }
        }

        /// Returns how long after the last heartbeat this master stands for election, by the wall clock.
        fn stands_after(&mut self, look: Duration) -> Duration {
            let from = self.now;
            while !self.detector.should_stand() {
                self.look_after(look);
            }
            self.now - from
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_calm_machine_a_dead_leader_is_missed_after_its_lease_and_a_random_time() {
        let mut fixture = Fixture::new();
        let after = fixture.stands_after(ms(10));
        assert!((ms(390)..=ms(410)).contains(&after), "{after:?}");
        // It stands again, as long as nobody is elected.
        fixture.detector.stood(ms(120));
        assert!(!fixture.detector.should_stand());
        let again = fixture.stands_after(ms(10));
        assert!((ms(110)..=ms(130)).contains(&again), "{again:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_master_that_was_stopped_gives_the_leader_a_full_window() {
        let mut fixture = Fixture::new();
        // This master was stopped for three seconds, in which it could hear nothing.
        fixture.now += ms(3000);
        assert_eq!(fixture.detector.look(fixture.now, fixture.seen), ms(2990));
        let after = fixture.stands_after(ms(10));
        assert!((ms(330)..=ms(350)).contains(&after), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_master_that_is_always_late_still_notices() {
        let mut fixture = Fixture::new();
        let after = fixture.stands_after(ms(100));
        assert!((ms(1000)..ms(3300)).contains(&after), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn patience_follows_the_silences_of_a_live_leader_and_comes_down_again() {
        let mut fixture = Fixture::new();
        fixture.silent_for(ms(300));
        fixture.beat();
        let after = fixture.stands_after(ms(10));
        // The silence was 310 ms; what exceeds the expected 100 ms is added twice.
        assert!((ms(800)..=ms(840)).contains(&after), "{after:?}");
        fixture.beat();
        // However late the leader is, the patience is bounded.
        for _ in 0..4 {
            fixture.silent_for(ms(5000));
            fixture.beat();
        }
        let after = fixture.stands_after(ms(10));
        assert!((ms(2390)..=ms(2410)).contains(&after), "{after:?}");
        fixture.beat();
        fixture.led_for(MEMORY * 3);
        let after = fixture.stands_after(ms(10));
        assert!((ms(390)..=ms(410)).contains(&after), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_death_of_a_leader_says_nothing_of_how_late_the_next_one_may_be() {
        let mut fixture = Fixture::new();
        fixture.silent_for(ms(600));
        fixture.seen.vote = (2, 2, true);
        fixture.beat();
        fixture.led_for(ms(200));
        let after = fixture.stands_after(ms(10));
        assert!((ms(390)..=ms(410)).contains(&after), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_voted_for_a_candidate_waits_for_no_lease() {
        let mut fixture = Fixture::new();
        fixture.silent_for(ms(500));
        fixture.seen.vote = (2, 3, false);
        fixture.look_after(ms(10));
        let after = fixture.stands_after(ms(10));
        assert!((ms(130)..=ms(150)).contains(&after), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_vote_waits_until_the_last_one_can_have_reached_slow_disks() {
        let mut fixture = Fixture::new();
        let _ = fixture.stands_after(ms(10));
        fixture.detector.stood(JITTER);
        // Its own vote is being written.
        let begun = fixture.now;
        while fixture.now - begun < ms(400) {
            fixture.seen.sync = fixture.now - begun;
            fixture.look_after(ms(10));
            assert!(!fixture.detector.should_stand());
        }
        // Now the others write theirs, and then the leader its own.
        fixture.seen.vote = (2, 1, false);
        fixture.look_after(ms(10));
        let after = fixture.stands_after(ms(10));
        assert!((ms(1300)..=ms(1330)).contains(&after), "{after:?}");
        // Who voted for another one gives that one the same time.
        fixture.seen.vote = (3, 2, false);
        fixture.look_after(ms(10));
        let after = fixture.stands_after(ms(10));
        assert!((ms(1300)..=ms(1330)).contains(&after), "{after:?}");
        // However slow the disk is, the time is bounded.
        fixture.seen.sync = ms(60_000);
        fixture.seen.vote = (4, 3, false);
        fixture.look_after(ms(10));
        let after = fixture.stands_after(ms(10));
        assert!((ms(2100)..=ms(2160)).contains(&after), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_doubts_itself_after_a_window_of_its_own_and_not_before() {
        let mut fixture = Fixture::new();
        // This master was stopped for two seconds; the answers wait in its sockets.
        fixture.look_after(ms(2000));
        assert!(fixture.detector.in_touch_with_quorum());
        fixture.beat();
        fixture.led_for(MEMORY * 3);
        fixture.silent_for(ms(700));
        assert!(fixture.detector.in_touch_with_quorum());
        fixture.silent_for(ms(100));
        assert!(!fixture.detector.in_touch_with_quorum());
        // A slow write of the log extends the patience.
        fixture.seen.sync = ms(400);
        fixture.look_after(ms(10));
        assert!(fixture.detector.in_touch_with_quorum());
    }
}
