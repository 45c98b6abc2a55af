//! Changing the group of masters. Voter sets go from odd to odd in one joint
//! change: a joiner stays a learner until two are caught up, then both become
//! voters; a replacement is swapped for the one it replaces. Any master takes a
//! request and hands it to the leader. What is safe is said in `plan.rs`; what the
//! leader does by itself is in `autopilot.rs`.

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

/// A learner this many entries behind, or fewer, is caught up.
const CAUGHT_UP_ENTRIES: u64 = 128;
/// How often the leader looks for learners to promote.
const PROMOTE_INTERVAL: Duration = Duration::from_millis(250);
/// A voter that answered within this many leases runs.
const RUNNING_LEASES: u32 = 8;
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Bound on one change, joint and uniform entry.
pub(crate) const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);

/// What is asked of the leader.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum MembershipChange {
    Add(MasterAddress),
    Remove(BTreeSet<NodeId>),
    SetInfo(NodeId, MasterAddress),
    TransferLeader(NodeId),
    Promote(BTreeSet<NodeId>),
    /// The one that goes, and who takes its place (`None`: whoever can).
    Replace(NodeId, Option<NodeId>),
}

/// What the leader answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ChangeReply {
    Done,
    Added(NodeId),
    /// This one took the place.
    Replaced(NodeId),
    /// Ask whoever leads now.
    NotLeader(String),
    Refused(String),
}

impl Consensus {
    /// Adds a master as a learner and gives its id, which no master had before.
    /// It votes once the set of voters can stay odd.
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

    /// Removes masters. A voter goes when a caught-up learner can take its place
    /// or when an odd number of voters is left; otherwise the reason why not.
    pub async fn remove_masters(&self, ids: &[NodeId], deadline: Duration) -> Result<(), ChangeError> {
        self.change(MembershipChange::Remove(ids.iter().copied().collect()), deadline).await.map(|_| ())
    }

    /// Removes one master, see [`Consensus::remove_masters`].
    pub async fn remove_master(&self, id: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        self.remove_masters(&[id], deadline).await
    }

    /// Makes voters of learners that have caught up, with one more when that keeps
    /// the number odd; otherwise the reason why not.
    pub async fn promote_masters(&self, ids: &[NodeId], deadline: Duration) -> Result<(), ChangeError> {
        self.change(MembershipChange::Promote(ids.iter().copied().collect()), deadline).await.map(|_| ())
    }

    /// Swaps a voter for a learner that has caught up (`None`: any) in one change,
    /// and gives the learner's id. The one replaced is no member afterwards.
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

    /// Hands leadership to another voter.
    pub async fn transfer_leader(&self, to: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        self.change(MembershipChange::TransferLeader(to), deadline).await.map(|_| ())
    }

    /// All masters, voters and learners, as far as is known here. In the middle of
    /// a change of voters only those count as voters who vote before and after it:
    /// until it ends, the old set alone can still decide.
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

    /// Asks the leader, whoever that is, until `deadline`.
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

    /// Carries a change out as leader.
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
        // A learner of the same name is an earlier attempt of the same joiner.
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
            // Done already, by an attempt whose answer was lost or by the leader itself.
            return Ok(ChangeReply::Replaced(new));
        }
        let (next, new) = plan::replacement(&view, old, new).map_err(ChangeReply::Refused)?;
        self.enter(&view, next).await?;
        Ok(ChangeReply::Replaced(new))
    }

    /// Enters another set of voters. A leader that is not among them hands over
    /// first, and the next one finishes it.
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

    /// A master's new name or addresses. One that was removed does not come back
    /// that way.
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
        // openraft answers a little before its metrics say so, and the next change goes by those: a master that had
        // just joined would be unknown to its removal.
        let mut metrics = self.raft.metrics();
        while *metrics.borrow_watched().membership_config.log_id() < Some(changed.log_id) {
            metrics.changed().await.map_err(|error| not_leader(&error))?;
        }
        Ok(ChangeReply::Done)
    }

    /// Voters and all members of the effective membership.
    pub(crate) fn membership(&self) -> (BTreeSet<NodeId>, BTreeMap<NodeId, MasterAddress>) {
        let metrics = self.raft.metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        let nodes = membership.nodes().map(|(id, info)| (*id, info.clone())).collect();
        // In the middle of a change: the voters it leads to.
        (membership.get_joint_config().last().cloned().unwrap_or_default(), nodes)
    }

    /// Whether a change of voters was begun and not ended.
    pub(crate) fn is_joint(&self) -> bool {
        let metrics = self.raft.metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        membership.get_joint_config().len() > 1
    }

    /// Whether a voter has answered this leader lately.
    pub(crate) fn is_running(&self, id: NodeId) -> bool {
        let metrics = self.raft.metrics();
        let answered = metrics.borrow_watched().heartbeat.clone().unwrap_or_default();
        let last = answered.get(&id).and_then(Option::as_ref);
        id == self.node_id || last.is_some_and(|at| at.elapsed() < self.lease * RUNNING_LEASES)
    }

    /// What this leader sees of the masters.
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

    /// The same, once a new leader had the time to hear from everyone.
    fn settled_view(&self) -> Result<View, ChangeReply> {
        let view = self.view();
        if view.voters.is_subset(&view.running) || self.has_led_for(self.lease * RUNNING_LEASES) {
            return Ok(view);
        }
        Err(ChangeReply::NotLeader("the leader is new and has not heard from everyone yet".to_owned()))
    }

    /// Makes voters of learners when that keeps the number odd.
    async fn promote(&self) {
        if !self.leadership.borrow().leading {
            return;
        }
        let _one_at_a_time = self.changing.lock().await;
        let view = self.view();
        let changed = async {
            if self.is_joint() {
                // Whoever began it has gone, or gave up waiting.
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

    /// Tells the leader when this master's name or addresses have changed.
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

/// Promotes and announces until the node stops.
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
