//! Changes of the group of masters. The number of voters stays odd, by one joint change each time: a joiner
//! stays a learner until two learners are caught up, then both become voters; a replacement is swapped for
//! the voter it replaces. Any master takes a request and forwards it to the leader. `plan.rs` has the
//! safety rules; `autopilot.rs` has the changes that the leader makes by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{ChangeMembers, Instant as _};
use proto_env::planted::{self, Bug};
use proto_wire::raft::ChangeMembershipRequest;
use serde::{Deserialize, Serialize};
use storage::codec::{decode, encode};
use tokio::time::Instant;

use crate::consensus::Consensus;
use crate::network::Lane;
use crate::plan::{self, View};
use crate::raft_types::{Content, MasterAddress, Proposal};
use crate::types::{ChangeError, Member, NodeId};

/// Maximum number of entries by which a learner may be behind and still count as caught up.
const CAUGHT_UP_ENTRIES: u64 = 128;
/// How often the leader looks for learners to promote.
const PROMOTE_INTERVAL: Duration = Duration::from_millis(250);
/// Number of leases within which a voter must have answered to count as running.
const RUNNING_LEASES: u32 = 8;
const RETRY_PAUSE: Duration = Duration::from_millis(50);
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

impl Consensus {
    /// Adds a master as a learner and returns its id, which no master had before. It becomes a voter once
    /// the number of voters stays odd.
    pub async fn add_master(
        &self,
        address: MasterAddress,
        deadline: Duration,
    ) -> Result<NodeId, ChangeError> {
        match self.change(MembershipChange::Add(address), deadline).await? {
            ChangeReply::Added(id) => Ok(id),
            other => Err(ChangeError::Failed(format!("unexpected answer {other:?}"))),
        }
    }

    /// Removes masters. A voter is removed if a caught-up learner can take its place or an odd number of
    /// voters is left; otherwise the error says why not.
    pub async fn remove_masters(&self, ids: &[NodeId], deadline: Duration) -> Result<(), ChangeError> {
        self.change(MembershipChange::Remove(ids.iter().copied().collect()), deadline).await.map(|_| ())
    }

    /// Removes one master, see [`Consensus::remove_masters`].
    pub async fn remove_master(&self, id: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        self.remove_masters(&[id], deadline).await
    }

    /// Makes voters of learners that have caught up, with one more learner if that keeps the number odd;
    /// otherwise the error says why not.
    pub async fn promote_masters(&self, ids: &[NodeId], deadline: Duration) -> Result<(), ChangeError> {
        self.change(MembershipChange::Promote(ids.iter().copied().collect()), deadline).await.map(|_| ())
    }

    /// Swaps a voter for a caught-up learner (`None`: any) in one change, and returns the learner's id. The
    /// replaced master is no member afterwards.
    pub async fn replace_master(
        &self,
        old: NodeId,
        new: Option<NodeId>,
        deadline: Duration,
    ) -> Result<NodeId, ChangeError> {
        match self.change(MembershipChange::Replace(old, new), deadline).await? {
            ChangeReply::Replaced(id) => Ok(id),
            other => Err(ChangeError::Failed(format!("unexpected answer {other:?}"))),
        }
    }

    /// Transfers leadership to another voter.
    pub async fn transfer_leader(&self, to: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        self.change(MembershipChange::TransferLeader(to), deadline).await.map(|_| ())
    }

    /// Returns all masters, voters and learners, as far as this master knows. In the middle of a change,
    /// only masters that vote both before and after it count as voters: until the change ends, the old set
    /// alone can still decide.
    pub fn members(&self) -> Vec<Member> {
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

    /// Sends the change to the leader and retries, also with a new leader, until `deadline` has passed.
    async fn change(&self, change: MembershipChange, deadline: Duration) -> Result<ChangeReply, ChangeError> {
        let until = Instant::now() + deadline;
        let mut reason = "no leader is known".to_owned();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stop.is_cancelled() {
                return Err(ChangeError::Failed(reason));
            }
            let leader = self.leadership.borrow().leader;
            let reply = match leader {
                None => ChangeReply::NotLeader(reason.clone()),
                Some(leader) if leader == self.node_id => self.change_here(change.clone()).await,
                Some(leader) => self
                    .change_there(leader, &change, left)
                    .await
                    .unwrap_or_else(|error| ChangeReply::NotLeader(error.to_string())),
            };
            match reply {
                ChangeReply::Refused(reason) => return Err(ChangeError::Refused(reason)),
                ChangeReply::NotLeader(why) => reason = why,
                done => return Ok(done),
            }
            tokio::time::sleep(RETRY_PAUSE.min(left)).await;
        }
    }

    async fn change_there(
        &self,
        leader: NodeId,
        change: &MembershipChange,
        deadline: Duration,
    ) -> Result<ChangeReply, ChangeError> {
        let failed = |error: &dyn std::fmt::Display| ChangeError::Failed(error.to_string());
        let address = self.address_of(leader).ok_or_else(|| failed(&"the leader's address is not known"))?;
        let mut client =
            self.peers.client(leader, &address, Lane::Forward).map_err(|error| failed(&error))?;
        let change = encode("membership change", change).map_err(|error| failed(&error))?;
        let request = ChangeMembershipRequest { change };
        let call = client.change_membership(self.peers.request(leader, request));
        let reply = self.peers.call(leader, Lane::Forward, deadline, call).await;
        decode("membership reply", &reply.map_err(|error| failed(&error))?.reply)
            .map_err(|error| failed(&error))
    }

    /// Carries out a change as the leader.
    pub(crate) async fn change_here(&self, change: MembershipChange) -> ChangeReply {
        if !self.raft.is_leader() {
            return ChangeReply::NotLeader("this master does not lead".to_owned());
        }
        let _one_at_a_time = self.changing.lock().await;
        let result = tokio::time::timeout(CHANGE_TIMEOUT, async {
            match change {
                MembershipChange::Add(info) => self.add_here(info).await,
                MembershipChange::Remove(ids) => self.remove_here(ids).await,
                MembershipChange::SetInfo(id, info) => self.set_info_here(id, info).await,
                MembershipChange::TransferLeader(to) => self.transfer_here(to).await,
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
        let (voters, nodes) = self.membership();
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
            self.apply_change(ChangeMembers::RemoveNodes(earlier)).await?;
        }
        let proposal =
            Proposal::encode(&Content::NewNodeId).map_err(|error| ChangeReply::Refused(error.to_string()))?;
        let written = self.raft.client_write(proposal).await;
        let mut id = written.map_err(|error| ChangeReply::NotLeader(error.to_string()))?.log_id.index;
        // Planted: ids are counted, and come back once their master was removed.
        if planted::is(Bug::NodeIdReused) {
            id = nodes.keys().max().map_or(1, |greatest| greatest + 1);
        }
        self.apply_change(ChangeMembers::AddNodes(BTreeMap::from([(id, info)]))).await?;
        Ok(ChangeReply::Added(id))
    }

    async fn remove_here(&self, ids: BTreeSet<NodeId>) -> Result<ChangeReply, ChangeReply> {
        let view = self.settled_view()?;
        let unknown: Vec<_> = ids.iter().filter(|id| !view.nodes.contains_key(id)).collect();
        if !unknown.is_empty() {
            return Ok(ChangeReply::Done);
        }
        let next = plan::removal(&view, &ids).map_err(ChangeReply::Refused)?;
        self.enter(&view, next).await?;
        let (_, nodes) = self.membership();
        let left: BTreeSet<NodeId> = ids.into_iter().filter(|id| nodes.contains_key(id)).collect();
        if !left.is_empty() {
            self.apply_change(ChangeMembers::RemoveNodes(left)).await?;
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
            self.transfer_here(to).await?;
            return Err(ChangeReply::NotLeader("leadership was handed over first".to_owned()));
        }
        tracing::info!(voters = ?view.voters, ?next, "changing the voters");
        self.apply_change(ChangeMembers::ReplaceAllVoters(next)).await
    }

    /// Sets a master's new name or addresses. A master that was removed is refused, so it does not come
    /// back this way.
    async fn set_info_here(&self, id: NodeId, info: MasterAddress) -> Result<ChangeReply, ChangeReply> {
        let (_, nodes) = self.membership();
        let Some(known) = nodes.get(&id) else {
            return Err(ChangeReply::Refused(format!("master {id} is not a member")));
        };
        let info = MasterAddress { replaces: known.replaces, ..info };
        self.apply_change(ChangeMembers::SetNodes(BTreeMap::from([(id, info)]))).await
    }

    pub(crate) async fn transfer_here(&self, to: NodeId) -> Result<ChangeReply, ChangeReply> {
        if !self.membership().0.contains(&to) {
            return Err(ChangeReply::Refused(format!("master {to} does not vote")));
        }
        if to == self.node_id {
            return Ok(ChangeReply::Done);
        }
        let sent = self.raft.trigger().transfer_leader(to).await;
        sent.map_err(|error| ChangeReply::NotLeader(error.to_string()))?;
        let mut leadership = self.leadership.subscribe();
        let changed = leadership.wait_for(|now| now.leader.is_some_and(|leader| leader != self.node_id));
        match tokio::time::timeout(self.lease * 8, changed).await {
            Ok(Ok(_)) => Ok(ChangeReply::Done),
            _ => Err(ChangeReply::NotLeader("leadership was not taken over".to_owned())),
        }
    }

    pub(crate) async fn apply_change(
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
    pub(crate) fn membership(&self) -> (BTreeSet<NodeId>, BTreeMap<NodeId, MasterAddress>) {
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
        let (voters, nodes) = self.membership();
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

    /// Makes voters of caught-up learners if that keeps the number odd.
    async fn promote(&self) {
        if !self.leadership.borrow().leading {
            return;
        }
        let _one_at_a_time = self.changing.lock().await;
        let view = self.view();
        let changed = async {
            if self.is_joint() {
                // The master that began the change has stopped, or has given up waiting.
                let change = ChangeMembers::ReplaceAllVoters(view.voters.clone());
                return self.apply_change(change).await;
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

    /// Tells the leader this master's name and addresses if they have changed.
    async fn announce(&self) {
        let (_, nodes) = self.membership();
        let differs = |known: &MasterAddress| {
            MasterAddress { replaces: 0, ..known.clone() }
                != MasterAddress { replaces: 0, ..self.info.clone() }
        };
        let stale = nodes.get(&self.node_id).is_some_and(differs);
        if stale && self.leadership.borrow().leader.is_some() {
            let change = MembershipChange::SetInfo(self.node_id, self.info.clone());
            if let Err(error) = self.change(change, Duration::from_secs(2)).await {
                tracing::warn!(%error, "announcing this master's addresses failed; it is tried again");
            }
        }
    }
}

/// Promotes learners and announces this master's addresses until the node stops.
pub(crate) async fn run(consensus: Arc<Consensus>) {
    loop {
        tokio::select! {
            biased;
            () = consensus.stop.cancelled() => return,
            () = tokio::time::sleep(PROMOTE_INTERVAL) => {
                consensus.announce().await;
                consensus.promote().await;
            }
        }
    }
}
