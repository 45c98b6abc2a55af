//! Changing the group of masters. Voter sets go from odd to odd in one joint
//! change: a joiner stays a learner until two are caught up, then both become
//! voters; a replacement is swapped for the one it replaces. Any master takes a
//! request and hands it to the leader.

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
use crate::raft_types::{Content, MasterAddress, Proposal};
use crate::types::{ChangeError, Member, NodeId};

/// The most voters.
const VOTERS_MAX: usize = 7;
/// A learner this many entries behind, or fewer, is caught up.
const CAUGHT_UP_ENTRIES: u64 = 128;
/// How often the leader looks for learners to promote.
const PROMOTE_INTERVAL: Duration = Duration::from_millis(250);
/// A voter that answered within this many leases runs.
const RUNNING_LEASES: u32 = 8;
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Bound on one change, joint and uniform entry.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);

/// What is asked of the leader.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Change {
    Add(MasterAddress),
    Remove(BTreeSet<NodeId>),
    SetInfo(NodeId, MasterAddress),
    TransferLeader(NodeId),
}

/// What the leader answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ChangeReply {
    Done,
    Added(NodeId),
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
        match self.change(Change::Add(address), deadline).await? {
            ChangeReply::Added(id) => Ok(id),
            other => Err(ChangeError::Failed(format!("unexpected answer {other:?}"))),
        }
    }

    /// Removes masters. A voter goes when a caught-up learner can take its place
    /// or when an odd number of voters is left; otherwise the reason why not.
    pub async fn remove_masters(&self, ids: &[NodeId], deadline: Duration) -> Result<(), ChangeError> {
        self.change(Change::Remove(ids.iter().copied().collect()), deadline).await.map(|_| ())
    }

    /// Removes one master, see [`Consensus::remove_masters`].
    pub async fn remove_master(&self, id: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        self.remove_masters(&[id], deadline).await
    }

    /// Hands leadership to another voter.
    pub async fn transfer_leader(&self, to: NodeId, deadline: Duration) -> Result<(), ChangeError> {
        self.change(Change::TransferLeader(to), deadline).await.map(|_| ())
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
        };
        metrics.membership_config.nodes().map(member).collect()
    }

    /// Asks the leader, whoever that is, until `deadline`.
    async fn change(&self, change: Change, deadline: Duration) -> Result<ChangeReply, ChangeError> {
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
        change: &Change,
        deadline: Duration,
    ) -> Result<ChangeReply, ChangeError> {
        let failed = |error: &dyn std::fmt::Display| ChangeError::Failed(error.to_string());
        let address = self.address_of(leader).ok_or_else(|| failed(&"the leader's address is not known"))?;
        let mut client =
            self.peers.client(leader, &address, Lane::Forward).map_err(|error| failed(&error))?;
        let change = encode("membership change", change).map_err(|error| failed(&error))?;
        let request = ChangeMembershipRequest { cluster_id: self.cluster_id.clone(), change };
        let call = client.change_membership(self.peers.request(leader, request));
        let reply = self.peers.call(leader, Lane::Forward, deadline, call).await;
        decode("membership reply", &reply.map_err(|error| failed(&error))?.reply)
            .map_err(|error| failed(&error))
    }

    /// Carries a change out as leader.
    pub(crate) async fn change_here(&self, change: Change) -> ChangeReply {
        if !self.raft.is_leader() {
            return ChangeReply::NotLeader("this master does not lead".to_owned());
        }
        let _one_at_a_time = self.changing.lock().await;
        let result = tokio::time::timeout(CHANGE_TIMEOUT, async {
            match change {
                Change::Add(info) => self.add_here(info).await,
                Change::Remove(ids) => self.remove_here(ids).await,
                Change::SetInfo(id, info) => {
                    self.apply_change(ChangeMembers::SetNodes(BTreeMap::from([(id, info)]))).await
                }
                Change::TransferLeader(to) => self.transfer_here(to).await,
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
        let (voters, nodes) = self.membership();
        let unknown: Vec<_> = ids.iter().filter(|id| !nodes.contains_key(id)).collect();
        if !unknown.is_empty() {
            return Ok(ChangeReply::Done);
        }
        let next = plan_removal(&voters, &ids, &self.caught_up_learners()).map_err(ChangeReply::Refused)?;
        if ids.contains(&self.node_id) && next != voters {
            // The next leader finishes it.
            let to = next.iter().find(|id| voters.contains(id)).copied();
            let to = to.ok_or_else(|| ChangeReply::Refused("no voter is left to lead".to_owned()))?;
            self.transfer_here(to).await?;
            return Err(ChangeReply::NotLeader("leadership was handed over first".to_owned()));
        }
        if next != voters {
            self.apply_change(ChangeMembers::ReplaceAllVoters(next)).await?;
        }
        let (_, nodes) = self.membership();
        let left: BTreeSet<NodeId> = ids.into_iter().filter(|id| nodes.contains_key(id)).collect();
        if !left.is_empty() {
            self.apply_change(ChangeMembers::RemoveNodes(left)).await?;
        }
        Ok(ChangeReply::Done)
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

    async fn apply_change(
        &self,
        change: ChangeMembers<NodeId, MasterAddress>,
    ) -> Result<ChangeReply, ChangeReply> {
        match self.raft.change_membership(change, false).await {
            Ok(_) => Ok(ChangeReply::Done),
            Err(error) => Err(ChangeReply::NotLeader(error.to_string())),
        }
    }

    /// Voters and all members of the effective membership.
    fn membership(&self) -> (BTreeSet<NodeId>, BTreeMap<NodeId, MasterAddress>) {
        let metrics = self.raft.metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        let nodes = membership.nodes().map(|(id, info)| (*id, info.clone())).collect();
        // In the middle of a change: the voters it leads to.
        (membership.get_joint_config().last().cloned().unwrap_or_default(), nodes)
    }

    /// Whether a change of voters was begun and not ended.
    fn is_joint(&self) -> bool {
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

    /// Learners that have nearly all of this leader's log, in the order of ids.
    fn caught_up_learners(&self) -> BTreeSet<NodeId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let voters: BTreeSet<NodeId> = metrics.membership_config.voter_ids().collect();
        let Some(replication) = &metrics.replication else { return BTreeSet::new() };
        let near = |matched: u64| matched + CAUGHT_UP_ENTRIES >= last;
        replication
            .iter()
            .filter(|(id, matched)| !voters.contains(id) && matched.as_ref().is_some_and(|m| near(m.index)))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Makes voters of learners when that keeps the number odd.
    async fn promote(&self) {
        if !self.leadership.borrow().leading {
            return;
        }
        let _one_at_a_time = self.changing.lock().await;
        let (voters, nodes) = self.membership();
        let next = if self.is_joint() {
            // Whoever began it has gone, or gave up waiting.
            voters.clone()
        } else {
            let Some(next) = plan_promotion(&voters, &nodes, &self.caught_up_learners()) else { return };
            next
        };
        tracing::info!(?voters, ?next, "changing the voters");
        let change = self.apply_change(ChangeMembers::ReplaceAllVoters(next));
        if let Ok(Err(reply)) = tokio::time::timeout(CHANGE_TIMEOUT, change).await {
            tracing::warn!(?reply, "changing the voters failed; it is tried again");
        }
    }

    /// Tells the leader when this master's name or addresses have changed.
    async fn announce(&self) {
        let (_, nodes) = self.membership();
        let stale = nodes.get(&self.node_id).is_some_and(|known| *known != self.info);
        if stale && self.leadership.borrow().leader.is_some() {
            let change = Change::SetInfo(self.node_id, self.info.clone());
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

/// The voters after `caught_up` learners joined them, if any should.
fn plan_promotion(
    voters: &BTreeSet<NodeId>,
    nodes: &BTreeMap<NodeId, MasterAddress>,
    caught_up: &BTreeSet<NodeId>,
) -> Option<BTreeSet<NodeId>> {
    let name = |id: &NodeId| nodes.get(id).map(|info| info.name.as_str());
    // A learner with the name of a voter is that master come back without its
    // data: it takes the old one's place.
    for learner in caught_up {
        if let Some(old) = voters.iter().find(|voter| name(voter).is_some() && name(voter) == name(learner)) {
            let mut next = voters.clone();
            next.remove(old);
            next.insert(*learner);
            return Some(next);
        }
    }
    if caught_up.len() < 2 || voters.len() + 2 > VOTERS_MAX {
        return None;
    }
    Some(voters.iter().chain(caught_up.iter().take(2)).copied().collect())
}

/// The voters after `ids` went, or why they may not.
fn plan_removal(
    voters: &BTreeSet<NodeId>,
    ids: &BTreeSet<NodeId>,
    caught_up: &BTreeSet<NodeId>,
) -> Result<BTreeSet<NodeId>, String> {
    let mut next: BTreeSet<NodeId> = voters.difference(ids).copied().collect();
    if next.len() % 2 == 1 || next.len() == voters.len() {
        return Ok(next);
    }
    if let Some(substitute) = caught_up.difference(ids).next() {
        next.insert(*substitute);
        return Ok(next);
    }
    Err(format!(
        "{} of {} voters would be left: an even number tolerates no more failures than one less. \
         Add a master to take the place first, or remove two",
        next.len(),
        voters.len(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[NodeId]) -> BTreeSet<NodeId> {
        ids.iter().copied().collect()
    }

    fn nodes(names: &[(NodeId, &str)]) -> BTreeMap<NodeId, MasterAddress> {
        let info = |name: &str| MasterAddress { name: name.to_owned(), ..MasterAddress::default() };
        names.iter().map(|(id, name)| (*id, info(name))).collect()
    }

    #[test]
    fn learners_become_voters_in_pairs_up_to_seven() {
        let names = nodes(&[(1, "a"), (5, "b"), (9, "c"), (12, "d")]);
        assert_eq!(plan_promotion(&ids(&[1]), &names, &ids(&[5])), None);
        assert_eq!(plan_promotion(&ids(&[1]), &names, &ids(&[5, 9, 12])), Some(ids(&[1, 5, 9])));
        let seven = ids(&[1, 2, 3, 4, 6, 7, 8]);
        assert_eq!(plan_promotion(&seven, &names, &ids(&[5, 9])), None);
    }

    #[test]
    fn a_master_that_lost_its_data_takes_its_own_place() {
        let names = nodes(&[(1, "a"), (5, "b"), (9, "c"), (12, "b")]);
        assert_eq!(plan_promotion(&ids(&[1, 5, 9]), &names, &ids(&[12])), Some(ids(&[1, 9, 12])));
    }

    #[test]
    fn a_removal_that_leaves_an_even_number_is_refused_with_the_reason() {
        let reason = plan_removal(&ids(&[1, 2, 3]), &ids(&[3]), &ids(&[])).unwrap_err();
        assert!(reason.starts_with("2 of 3 voters would be left"), "{reason}");
        assert!(plan_removal(&ids(&[1]), &ids(&[1]), &ids(&[])).is_err());
        assert_eq!(plan_removal(&ids(&[1, 2, 3]), &ids(&[2, 3]), &ids(&[])), Ok(ids(&[1])));
        assert_eq!(plan_removal(&ids(&[1, 2, 3]), &ids(&[3]), &ids(&[3, 8])), Ok(ids(&[1, 2, 8])));
        assert_eq!(plan_removal(&ids(&[1, 2, 3]), &ids(&[8]), &ids(&[8])), Ok(ids(&[1, 2, 3])));
    }
}
