//! Changes of the group of masters. The number of voters stays odd, by one joint change each time: a joiner
//! stays a learner until two learners are caught up, then both become voters; a replacement is swapped for
//! the voter it replaces. `membership_requests.rs` brings requests to the leader; `plan.rs` has the safety
//! rules; `autopilot.rs` has the changes that the leader makes by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{ChangeMembers, Instant as _};
use proto_env::planted::{self, Bug};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard, watch};

use crate::autopilot::Autopilot;
use crate::plan::{self, View};
use crate::raft_types::{Content, MasterAddress, Proposal, Raft};
use crate::types::{Leadership, Member, NodeId};

/// Maximum number of entries by which a learner may be behind and still count as caught up.
const CAUGHT_UP_ENTRIES: u64 = 128;
/// Number of leases within which a voter must have answered to count as running.
const RUNNING_LEASES: u32 = 8;
/// Time limit of one change, with its joint and its uniform entry.
pub(crate) const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);

/// A change that the leader is asked to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum MembershipChange {
    Add(MasterAddress),
    Remove(BTreeSet<NodeId>),
    SetInfo(NodeId, MasterAddress),
    TransferLeader(NodeId),
    Promote(BTreeSet<NodeId>),
    /// Replaces the first master by the second one (`None`: by any learner that can).
    Replace(NodeId, Option<NodeId>),
}

/// The leader's answer to a [`MembershipChange`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ChangeReply {
    Done,
    Added(NodeId),
    /// The voter was replaced by this master.
    Replaced(NodeId),
    /// This master does not lead, or not any more: the request has to go to the present leader.
    NotLeader(String),
    Refused(String),
}

/// The group of masters as this master sees it, and the changes that it makes when it leads.
pub(crate) struct Membership {
    node_id: NodeId,
    lease: Duration,
    raft: Raft,
    leadership: watch::Receiver<Leadership>,
    autopilot: Arc<Autopilot>,
    /// Locked while the membership changes.
    changing: Mutex<()>,
}

/// Returns the peer address of a member; `None` if it is no member.
pub(crate) fn address_of(raft: &Raft, node: NodeId) -> Option<String> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    metrics.membership_config.get_node(&node).map(|info| info.peer_address.clone())
}

impl Membership {
    pub(crate) fn new(
        node_id: NodeId,
        lease: Duration,
        raft: Raft,
        leadership: watch::Receiver<Leadership>,
        autopilot: Arc<Autopilot>,
    ) -> Self {
        Self { node_id, lease, raft, leadership, autopilot, changing: Mutex::new(()) }
    }

    /// Returns all masters, voters and learners, as far as this master knows. In the middle of a change,
    /// only masters that vote both before and after it count as voters: until the change ends, the old set
    /// alone can still decide.
    pub(crate) fn members(&self) -> Vec<Member> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let sets = metrics.membership_config.get_joint_config();
        let leader = metrics.current_leader;
        let member = |(id, info): (&NodeId, &MasterAddress)| Member {
            id: *id,
            name: info.name.clone(),
            peer_address: info.peer_address.clone(),
            api_address: info.api_address.clone(),
            voter: sets.iter().all(|set| set.contains(id)),
            leader: leader == Some(*id),
            replaces: info.replaces,
        };
        metrics.membership_config.nodes().map(member).collect()
    }

    /// Carries out a change as the leader.
    pub(crate) async fn carry_out(&self, change: MembershipChange) -> ChangeReply {
        if !self.raft.is_leader() {
            return ChangeReply::NotLeader("this master does not lead".to_owned());
        }
        let _one_at_a_time = self.changing.lock().await;
        let result = tokio::time::timeout(CHANGE_TIMEOUT, async {
            match change {
                MembershipChange::Add(info) => self.add_here(info).await,
                MembershipChange::Remove(ids) => self.remove_here(ids).await,
                MembershipChange::SetInfo(id, info) => self.set_info_here(id, info).await,
                MembershipChange::TransferLeader(to) => self.transfer(to).await,
                MembershipChange::Promote(ids) => self.promote_here(ids).await,
                MembershipChange::Replace(old, new) => self.replace_here(old, new).await,
            }
        });
        match result.await {
            Ok(Ok(reply) | Err(reply)) => reply,
            Err(_) => ChangeReply::NotLeader("the change took too long".to_owned()),
        }
    }

    async fn add_here(&self, info: MasterAddress) -> Result<ChangeReply, ChangeReply> {
        let (voters, nodes) = self.voters_and_nodes();
        let namesake = |id: &&NodeId| nodes.get(id).is_some_and(|node| node.name == info.name);
        if let Some(id) = voters.iter().filter(namesake).find(|id| self.is_running(**id)) {
            return Err(ChangeReply::Refused(format!(
                "master {id} is called {} and is running: give this one another name (--name)",
                info.name
            )));
        }
        if info.replaces != 0 && !voters.contains(&info.replaces) {
            return Err(ChangeReply::Refused(format!(
                "master {} does not vote, so that nobody can take its place: join without --replace",
                info.replaces
            )));
        }
        // A learner of the same name is left from an earlier attempt of the same joiner.
        let earlier = nodes.iter().filter(|(id, node)| node.name == info.name && !voters.contains(id));
        let earlier: BTreeSet<NodeId> = earlier.map(|(id, _)| *id).collect();
        if !earlier.is_empty() {
            self.apply(ChangeMembers::RemoveNodes(earlier)).await?;
        }
        let proposal =
            Proposal::encode(&Content::NewNodeId).map_err(|error| ChangeReply::Refused(error.to_string()))?;
        let written = self.raft.client_write(proposal).await;
        let mut id = written.map_err(|error| ChangeReply::NotLeader(error.to_string()))?.log_id.index;
        // Planted: ids are counted, and come back once their master was removed.
        if planted::is(Bug::NodeIdReused) {
            id = nodes.keys().max().map_or(1, |greatest| greatest + 1);
        }
        self.apply(ChangeMembers::AddNodes(BTreeMap::from([(id, info)]))).await?;
        Ok(ChangeReply::Added(id))
    }

    async fn remove_here(&self, ids: BTreeSet<NodeId>) -> Result<ChangeReply, ChangeReply> {
        let view = self.settled_view()?;
        // Those that are no members were removed by an attempt whose answer was lost.
        let ids: BTreeSet<NodeId> = ids.into_iter().filter(|id| view.nodes.contains_key(id)).collect();
        if ids.is_empty() {
            return Ok(ChangeReply::Done);
        }
        let next = plan::removal(&view, &ids).map_err(ChangeReply::Refused)?;
        self.enter(&view, next).await?;
        let (_, nodes) = self.voters_and_nodes();
        let left: BTreeSet<NodeId> = ids.into_iter().filter(|id| nodes.contains_key(id)).collect();
        if !left.is_empty() {
            self.apply(ChangeMembers::RemoveNodes(left)).await?;
        }
        Ok(ChangeReply::Done)
    }

    async fn promote_here(&self, ids: BTreeSet<NodeId>) -> Result<ChangeReply, ChangeReply> {
        let view = self.settled_view()?;
        let next = plan::promotion_of(&view, &ids).map_err(ChangeReply::Refused)?;
        self.enter(&view, next).await
    }

    async fn replace_here(&self, old: NodeId, new: Option<NodeId>) -> Result<ChangeReply, ChangeReply> {
        let view = self.settled_view()?;
        if let Some(new) = new
            && !view.nodes.contains_key(&old)
            && view.voters.contains(&new)
        {
            // The swap was already made, by an attempt whose answer was lost or by the leader itself.
            return Ok(ChangeReply::Replaced(new));
        }
        let (next, new) = plan::replacement(&view, old, new).map_err(ChangeReply::Refused)?;
        self.enter(&view, next).await?;
        Ok(ChangeReply::Replaced(new))
    }

    /// Changes the set of voters to `next`. A leader that is not in `next` transfers leadership first; the
    /// new leader then finishes the change.
    async fn enter(&self, view: &View, next: BTreeSet<NodeId>) -> Result<ChangeReply, ChangeReply> {
        if next == view.voters {
            return Ok(ChangeReply::Done);
        }
        if !next.contains(&self.node_id) {
            let heir = |id: &&NodeId| view.voters.contains(id) && view.running.contains(id);
            let to = next.iter().find(heir).copied();
            let to = to.ok_or_else(|| ChangeReply::Refused("no voter is left to lead".to_owned()))?;
            self.transfer(to).await?;
            return Err(ChangeReply::NotLeader("leadership was handed over first".to_owned()));
        }
        tracing::info!(voters = ?view.voters, ?next, "changing the voters");
        self.apply(ChangeMembers::ReplaceAllVoters(next)).await
    }

    /// Sets a master's new name or addresses. A master that was removed is refused, so it does not come
    /// back this way.
    async fn set_info_here(&self, id: NodeId, info: MasterAddress) -> Result<ChangeReply, ChangeReply> {
        let (_, nodes) = self.voters_and_nodes();
        let Some(known) = nodes.get(&id) else {
            return Err(ChangeReply::Refused(format!("master {id} is not a member")));
        };
        let info = MasterAddress { replaces: known.replaces, ..info };
        self.apply(ChangeMembers::SetNodes(BTreeMap::from([(id, info)]))).await
    }

    pub(crate) async fn transfer(&self, to: NodeId) -> Result<ChangeReply, ChangeReply> {
        if !self.voters_and_nodes().0.contains(&to) {
            return Err(ChangeReply::Refused(format!("master {to} does not vote")));
        }
        if to == self.node_id {
            return Ok(ChangeReply::Done);
        }
        let sent = self.raft.trigger().transfer_leader(to).await;
        sent.map_err(|error| ChangeReply::NotLeader(error.to_string()))?;
        let mut leadership = self.leadership.clone();
        let changed = leadership.wait_for(|now| now.leader.is_some_and(|leader| leader != self.node_id));
        match tokio::time::timeout(self.lease * 8, changed).await {
            Ok(Ok(_)) => Ok(ChangeReply::Done),
            _ => Err(ChangeReply::NotLeader("leadership was not taken over".to_owned())),
        }
    }

    pub(crate) async fn apply(
        &self,
        change: ChangeMembers<NodeId, MasterAddress>,
    ) -> Result<ChangeReply, ChangeReply> {
        let not_leader = |error: &dyn std::fmt::Display| ChangeReply::NotLeader(error.to_string());
        let changed = self.raft.change_membership(change, false).await.map_err(|error| not_leader(&error))?;
        // openraft answers shortly before its metrics show the change. The next change is planned from the
        // metrics: it would not know a master that had just joined.
        let mut metrics = self.raft.metrics();
        while *metrics.borrow_watched().membership_config.log_id() < Some(changed.log_id) {
            metrics.changed().await.map_err(|error| not_leader(&error))?;
        }
        Ok(ChangeReply::Done)
    }

    /// Returns the voters and all members of the effective membership.
    pub(crate) fn voters_and_nodes(&self) -> (BTreeSet<NodeId>, BTreeMap<NodeId, MasterAddress>) {
        let metrics = self.raft.metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        let nodes = membership.nodes().map(|(id, info)| (*id, info.clone())).collect();
        // In the middle of a change these are the new voters.
        (membership.get_joint_config().last().cloned().unwrap_or_default(), nodes)
    }

    /// Returns whether a change of voters was begun and has not ended.
    pub(crate) fn is_joint(&self) -> bool {
        let metrics = self.raft.metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        membership.get_joint_config().len() > 1
    }

    /// Returns whether a master has answered this leader recently.
    pub(crate) fn is_running(&self, id: NodeId) -> bool {
        let metrics = self.raft.metrics();
        let answered = metrics.borrow_watched().heartbeat.clone().unwrap_or_default();
        let last = answered.get(&id).and_then(Option::as_ref);
        id == self.node_id || last.is_some_and(|at| at.elapsed() < self.lease * RUNNING_LEASES)
    }

    /// Returns the leader's view of all masters.
    pub(crate) fn view(&self) -> View {
        let (voters, nodes) = self.voters_and_nodes();
        let running = nodes.keys().copied().filter(|id| self.is_running(*id)).collect();
        let mut view = View { voters, nodes, running, ready: BTreeSet::new() };
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let near = |matched: u64| matched + CAUGHT_UP_ENTRIES >= last;
        for (id, matched) in metrics.replication.iter().flatten() {
            let caught_up = matched.as_ref().is_some_and(|matched| near(matched.index));
            if caught_up && !view.voters.contains(id) && view.running.contains(id) {
                view.ready.insert(*id);
            }
        }
        view
    }

    /// Returns [`Self::view`] once a new leader has had the time to hear from every master.
    fn settled_view(&self) -> Result<View, ChangeReply> {
        let view = self.view();
        if view.voters.is_subset(&view.running) || self.has_led_for(self.lease * RUNNING_LEASES) {
            return Ok(view);
        }
        Err(ChangeReply::NotLeader("the leader is new and has not heard from everyone yet".to_owned()))
    }

    /// Returns whether this master has led its term for this long.
    fn has_led_for(&self, time: Duration) -> bool {
        self.autopilot.has_led_for(self.leadership.borrow().term, time)
    }

    /// Makes voters of caught-up learners if that keeps the number odd.
    pub(crate) async fn promote(&self) {
        if !self.leadership.borrow().leading {
            return;
        }
        let _one_at_a_time = self.changing.lock().await;
        let view = self.view();
        let changed = async {
            if self.is_joint() {
                // The master that began the change has stopped, or has given up waiting.
                let change = ChangeMembers::ReplaceAllVoters(view.voters.clone());
                return self.apply(change).await;
            }
            match plan::promotion(&view) {
                Some(next) => self.enter(&view, next).await,
                None => Ok(ChangeReply::Done),
            }
        };
        match tokio::time::timeout(CHANGE_TIMEOUT, changed).await {
            Ok(Err(reply)) => tracing::warn!(?reply, "changing the voters failed; it is tried again"),
            Err(_) => tracing::warn!("changing the voters took too long; it is tried again"),
            Ok(Ok(_)) => {}
        }
    }

    /// Waits until nobody changes the membership, and keeps it so while the guard lives.
    pub(crate) async fn one_at_a_time(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Returns whether `id`, which claims to be a member, is certainly none. During a change of the
    /// membership that is not certain.
    pub(crate) fn lacks(&self, id: NodeId) -> bool {
        let Ok(_unchanging) = self.changing.try_lock() else { return false };
        !self.is_joint() && !self.voters_and_nodes().1.contains_key(&id)
    }
}
