//! Requests to change the group of masters. Any master takes one and forwards it to the leader, which
//! carries it out (`membership.rs`). Also the task that has caught-up learners promoted and announces this
//! master's addresses.

use std::sync::Arc;
use std::time::Duration;

use proto_wire::raft::ChangeMembershipRequest;
use storage::codec::{decode, encode};
use tokio::time::Instant;

use crate::consensus::Consensus;
use crate::membership::{ChangeReply, MembershipChange, address_of};
use crate::network::Lane;
use crate::raft_types::MasterAddress;
use crate::types::{ChangeError, Member, NodeId};

/// How often the leader looks for learners to promote.
const PROMOTE_INTERVAL: Duration = Duration::from_millis(250);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

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
        self.membership.members()
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
                Some(leader) if leader == self.node_id => self.membership.carry_out(change.clone()).await,
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
        let address =
            address_of(&self.raft, leader).ok_or_else(|| failed(&"the leader's address is not known"))?;
        let mut client =
            self.peers.client(leader, &address, Lane::Forward).map_err(|error| failed(&error))?;
        let change = encode("membership change", change).map_err(|error| failed(&error))?;
        let request = ChangeMembershipRequest { change };
        let call = client.change_membership(self.peers.request(leader, request));
        let reply = self.peers.call(leader, Lane::Forward, deadline, call).await;
        decode("membership reply", &reply.map_err(|error| failed(&error))?.reply)
            .map_err(|error| failed(&error))
    }

    /// Tells the leader this master's name and addresses if they have changed.
    async fn announce(&self) {
        let (_, nodes) = self.membership.voters_and_nodes();
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
                consensus.membership.promote().await;
            }
        }
    }
}
