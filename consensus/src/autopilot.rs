//! The changes a leader makes by itself to keep its cluster healthy: a voter that has been silent for long
//! is replaced by a caught-up learner, or two of five or seven voters are removed; a learner that never
//! came up is removed. `plan.rs` has the rules. This file measures which members have been silent and since
//! when, as seen by this leader in this term and without a pause of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{ChangeMembers, Instant as _};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::consensus::Consensus;
use crate::membership::{CHANGE_TIMEOUT, ChangeReply};
use crate::network::lock;
use crate::plan::{self, View};
use crate::types::NodeId;

/// Time between two looks at all members.
const INTERVAL: Duration = Duration::from_millis(250);
/// Pause between two looks after which all measured silence is forgotten: this master itself was stopped.
const BLIND: Duration = Duration::from_secs(2);

/// How long the leader waits before it makes changes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutopilotConfig {
    /// Silence after which a voter is replaced; `None`: never.
    pub dead_after: Option<Duration>,
    /// Time after which a learner that never came up is removed; `None`: never.
    pub learner_expiry: Option<Duration>,
}

impl Default for AutopilotConfig {
    fn default() -> Self {
        let ten_minutes = Some(Duration::from_secs(600));
        Self { dead_after: ten_minutes, learner_expiry: ten_minutes }
    }
}

/// A change that the leader made by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AutopilotAction {
    /// Number of changes so far; 0: none was made.
    pub number: u64,
    /// The change, as a sentence.
    pub text: String,
}

/// The state of a member, as the leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberHealth {
    /// The member's id.
    pub id: NodeId,
    /// Whether the member has answered recently.
    pub running: bool,
    /// Number of log entries that the member is not known to have; `None`: it has never answered.
    pub lag: Option<u64>,
    /// Time since the member last answered; `None`: it has not in this term.
    pub heard: Option<Duration>,
    /// Time that the leader has waited for an answer in vain; `None`: the member answers.
    pub silent: Option<Duration>,
}

/// Which members have been silent since when, as seen in one term.
#[derive(Debug)]
struct Lookout {
    term: u64,
    since: Instant,
    looked: Instant,
    silent: BTreeMap<NodeId, Instant>,
}

/// The state of the autopilot: its settings, the silences seen, and the last change.
pub(crate) struct Autopilot {
    config: AutopilotConfig,
    lookout: Mutex<Lookout>,
    actions: watch::Sender<AutopilotAction>,
}

// === impl Lookout ===

impl Lookout {
    fn new(now: Instant) -> Self {
        Self { term: 0, since: now, looked: now, silent: BTreeMap::new() }
    }

    fn look(&mut self, now: Instant, term: u64, view: &View) {
        if self.term != term || now.saturating_duration_since(self.looked) > BLIND {
            *self = Self { term, ..Self::new(now) };
        }
        self.looked = now;
        self.silent.retain(|id, _| view.nodes.contains_key(id) && !view.running.contains(id));
        for id in view.nodes.keys().filter(|id| !view.running.contains(id)) {
            self.silent.entry(*id).or_insert(now);
        }
    }

    fn silence(&self, id: NodeId, now: Instant) -> Option<Duration> {
        self.silent.get(&id).map(|since| now.saturating_duration_since(*since))
    }

    fn silent_for(&self, limit: Option<Duration>, now: Instant) -> BTreeSet<NodeId> {
        let Some(limit) = limit else { return BTreeSet::new() };
        let long = |since: &Instant| now.saturating_duration_since(*since) >= limit;
        self.silent.iter().filter(|(_, since)| long(since)).map(|(id, _)| *id).collect()
    }
}

// === impl Autopilot ===

impl Autopilot {
    pub(crate) fn new(config: AutopilotConfig) -> Self {
        Self { config, lookout: Mutex::new(Lookout::new(Instant::now())), actions: watch::Sender::default() }
    }

    /// Returns whether this master has led `term` for this long.
    pub(crate) fn has_led_for(&self, term: u64, time: Duration) -> bool {
        let lookout = self.lookout();
        lookout.term == term && lookout.since.elapsed() >= time
    }

    fn lookout(&self) -> MutexGuard<'_, Lookout> {
        lock(&self.lookout)
    }

    fn acted(&self, text: String) {
        tracing::warn!(action = text, "autopilot");
        self.actions.send_modify(|action| *action = AutopilotAction { number: action.number + 1, text });
    }
}

// === impl Consensus ===

impl Consensus {
    /// Returns the state of every member if this master leads; otherwise empty.
    pub fn health(&self) -> Vec<MemberHealth> {
        let leadership = *self.leadership.borrow();
        if !leadership.leading {
            return Vec::new();
        }
        let view = self.membership.view();
        let now = Instant::now();
        let lookout = self.autopilot.lookout();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let health = |id: &NodeId| {
            let me = *id == self.node_id;
            let matched = metrics.replication.as_ref().and_then(|all| all.get(id)).and_then(Option::as_ref);
            let heard = metrics.heartbeat.as_ref().and_then(|all| all.get(id)).and_then(Option::as_ref);
            MemberHealth {
                id: *id,
                running: view.running.contains(id),
                lag: if me { Some(0) } else { matched.map(|matched| last.saturating_sub(matched.index)) },
                heard: if me { Some(Duration::ZERO) } else { heard.map(|at| at.elapsed()) },
                silent: lookout.silence(*id, now),
            }
        };
        view.nodes.keys().map(health).collect()
    }

    /// Returns the settings of this master's autopilot.
    pub fn autopilot(&self) -> AutopilotConfig {
        self.autopilot.config
    }

    /// Watches the last change that this master made by itself as a leader.
    pub fn autopilot_actions(&self) -> watch::Receiver<AutopilotAction> {
        self.autopilot.actions.subscribe()
    }

    async fn watch_over(&self) {
        let leadership = *self.leadership.borrow();
        if !leadership.leading {
            return;
        }
        let (view, now) = (self.membership.view(), Instant::now());
        let (dead, absent) = {
            let mut lookout = self.autopilot.lookout();
            lookout.look(now, leadership.term, &view);
            let config = self.autopilot.config;
            (lookout.silent_for(config.dead_after, now), lookout.silent_for(config.learner_expiry, now))
        };
        let absent: BTreeSet<NodeId> =
            absent.into_iter().filter(|id| !view.voters.contains(id) && self.never_came_up(*id)).collect();
        if absent.is_empty() && view.voters.is_disjoint(&dead) {
            return;
        }
        let _one_at_a_time = self.membership.one_at_a_time().await;
        // The membership may have changed while this waited for another change.
        let view = self.membership.view();
        let dead = dead.difference(&view.running).copied().collect();
        let absent: BTreeSet<NodeId> = absent
            .into_iter()
            .filter(|id| view.nodes.contains_key(id) && !view.running.contains(id))
            .collect();
        match tokio::time::timeout(CHANGE_TIMEOUT, self.mend(&view, &dead, absent)).await {
            Ok(Ok(())) => {}
            Ok(Err(reply)) => tracing::warn!(?reply, "autopilot: a change failed; it is tried again"),
            Err(_) => tracing::warn!("autopilot: a change took too long; it is tried again"),
        }
        // The wait for the changes above was no pause of this master.
        self.autopilot.lookout().looked = Instant::now();
    }

    async fn mend(
        &self,
        view: &View,
        dead: &BTreeSet<NodeId>,
        absent: BTreeSet<NodeId>,
    ) -> Result<(), ChangeReply> {
        if !self.membership.is_joint()
            && let Some(next) = plan::repair(view, dead)
        {
            let names = |ids: BTreeSet<NodeId>| {
                ids.into_iter().map(|id| view.called(id)).collect::<Vec<_>>().join(" and ")
            };
            let gone = names(view.voters.difference(&next).copied().collect());
            let new = names(next.difference(&view.voters).copied().collect());
            let votes = next.len();
            self.membership.apply(ChangeMembers::ReplaceAllVoters(next)).await?;
            let did = if new.is_empty() {
                format!("{gone} did not answer for too long and were taken out: {votes} masters vote")
            } else {
                format!("{gone} did not answer for too long and was replaced by {new}")
            };
            self.autopilot.acted(did);
        }
        let absent: BTreeSet<NodeId> = absent.into_iter().filter(|id| !view.voters.contains(id)).collect();
        for id in &absent {
            self.membership.apply(ChangeMembers::RemoveNodes(BTreeSet::from([*id]))).await?;
            self.autopilot
                .acted(format!("{} never came up and was forgotten: it has to join again", view.called(*id)));
        }
        Ok(())
    }

    /// Returns whether a member has acknowledged no entry of this leader.
    fn never_came_up(&self, id: NodeId) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.replication.as_ref().is_some_and(|all| all.get(&id).is_none_or(Option::is_none))
    }
}

/// Watches the members and repairs the membership until the node stops.
pub(crate) async fn run(consensus: Arc<Consensus>) {
    loop {
        tokio::select! {
            biased;
            () = consensus.stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => consensus.watch_over().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft_types::MasterAddress;

    fn view(running: &[NodeId]) -> View {
        let nodes = [1, 2, 3].map(|id| (id, MasterAddress::default())).into();
        View { nodes, running: running.iter().copied().collect(), ..View::default() }
    }

    #[test]
    fn silence_is_counted_within_a_term_and_without_a_sleep_of_the_leader() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let limit = Some(Duration::from_millis(1500));
        let mut lookout = Lookout::new(start);
        for ms in [0, 1000, 1500] {
            lookout.look(at(ms), 7, &view(&[1, 2]));
        }
        assert_eq!(lookout.silent_for(limit, at(1500)), BTreeSet::from([3]));
        assert_eq!(lookout.silent_for(None, at(1500)), BTreeSet::new());
        // Once a master answers, its silence begins anew.
        lookout.look(at(1600), 7, &view(&[1, 2, 3]));
        lookout.look(at(1700), 7, &view(&[1, 2]));
        assert_eq!(lookout.silence(3, at(1900)), Some(Duration::from_millis(200)));
        // The leader was stopped, so the silence of the others is not real.
        lookout.look(at(60_000), 7, &view(&[1]));
        assert_eq!(lookout.silent_for(limit, at(60_000)), BTreeSet::new());
        // In a new term all silences begin anew.
        lookout.look(at(61_600), 7, &view(&[1]));
        assert_eq!(lookout.silent_for(limit, at(61_600)), BTreeSet::from([2, 3]));
        lookout.look(at(61_700), 8, &view(&[1]));
        assert_eq!(lookout.silent_for(limit, at(61_700)), BTreeSet::new());
    }
}
