//! Discovery of masters without a leader. A master that hears from no leader asks every address it knows
//! which master is there: those of the membership, those that others called from, and the hints it was
//! started with. So masters that all came back at other addresses find each other as soon as one of them is
//! told another's address. A master that was removed, or whose cluster was recovered without it, is told
//! so. A recovered master itself tells the members of the lost cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{MASTERS_ORGANIZATION, Purpose};
use proto_wire::raft::raft_client::RaftClient;
use proto_wire::raft::{HelloRequest, HelloResponse, PeerAddress};
use tonic::Status;
use tonic::transport::Channel;

use crate::consensus::Consensus;
use crate::fence::SUPERSEDED_KEY;
use crate::types::NodeId;

/// Time between two rounds, and between the first questions of a master that hears from no leader.
const INTERVAL: Duration = Duration::from_millis(500);
/// Maximum number of rounds between two questions. Questions become rarer, because connections cost most on
/// machines that are already busy.
const SELDOM: u32 = 8;
/// Time limit of one question, including connecting.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Rounds between two messages to the members of a lost cluster.
const TELL_ROUNDS: u32 = 4;
/// Maximum number of addresses asked at once: two each of seven voters and as many learners.
const ADDRESSES_MAX: usize = 32;

/// When to ask next, and the connections to ask over.
#[derive(Default)]
struct Rounds {
    /// Number of rounds so far.
    number: u32,
    /// Rounds until the next question, and rounds between that one and the one after.
    wait: u32,
    pause: u32,
    /// Connections that have not failed yet, by address.
    channels: BTreeMap<String, Channel>,
    /// Addresses found to be of another cluster; each is logged only once.
    strangers: BTreeSet<String>,
}

impl Rounds {
    /// Returns whether to ask in this round, while no leader is heard from.
    fn due(&mut self) -> bool {
        if self.wait > 0 {
            self.wait -= 1;
            return false;
        }
        self.pause = (self.pause * 2).clamp(1, SELDOM);
        self.wait = self.pause - 1;
        true
    }
}

/// Runs discovery until the node stops.
pub(crate) async fn run(consensus: Arc<Consensus>) {
    let mut rounds = Rounds::default();
    let mut superseded = consensus.peers.superseded();
    loop {
        tokio::select! {
            biased;
            () = consensus.stop.cancelled() => return,
            Ok(()) = superseded.changed() => {
                let by = superseded.borrow_and_update().clone();
                consensus.superseded(&by);
            }
            () = tokio::time::sleep(INTERVAL) => consensus.look_around(&mut rounds).await,
        }
    }
}

impl Consensus {
    async fn look_around(&self, rounds: &mut Rounds) {
        let mut addresses = BTreeSet::new();
        if self.leadership.borrow().quorum {
            (rounds.wait, rounds.pause) = (0, 0);
            rounds.channels.clear();
        } else if rounds.due() {
            addresses = self.addresses();
        }
        if rounds.number.is_multiple_of(TELL_ROUNDS) {
            addresses.extend(self.fences.tell.iter().cloned());
        }
        rounds.number = rounds.number.wrapping_add(1);
        let asked = addresses.into_iter().take(ADDRESSES_MAX).map(|address| {
            let channel = rounds.channels.get(&address).cloned();
            async move { (self.hello(&address, channel).await, address) }
        });
        for (answer, address) in join_all(asked).await {
            match answer {
                Ok((answer, channel)) => {
                    self.met(&address, answer);
                    rounds.channels.insert(address, channel);
                }
                Err(status) => {
                    rounds.channels.remove(&address);
                    let stranger = status.code() == tonic::Code::PermissionDenied;
                    if stranger
                        && rounds.strangers.len() < ADDRESSES_MAX
                        && rounds.strangers.insert(address.clone())
                    {
                        tracing::warn!(address, why = status.message(), "a stranger is at this address");
                    }
                }
            }
        }
    }

    /// Returns the addresses at which other masters may be.
    fn addresses(&self) -> BTreeSet<String> {
        let (_, nodes) = self.membership.voters_and_nodes();
        let known = nodes.values().map(|info| info.peer_address.clone());
        let learned = self.peers.learned().into_values();
        let mut all: BTreeSet<String> = known.chain(learned).chain(self.hints.iter().cloned()).collect();
        all.remove(&self.info.peer_address);
        all
    }

    async fn hello(&self, address: &str, known: Option<Channel>) -> Result<(HelloResponse, Channel), Status> {
        let options = ChannelOptions {
            purpose: Purpose::Peer,
            organization: Some(MASTERS_ORGANIZATION),
            connect_timeout: TIMEOUT,
        };
        let channel = match known {
            Some(channel) => channel,
            None => channel(self.env.network.clone(), address, options)
                .map_err(|error| Status::unavailable(error.to_string()))?,
        };
        let mut request = tonic::Request::new(HelloRequest {
            cluster_id: self.cluster_id.clone(),
            node_id: self.node_id,
            peer_address: self.info.peer_address.clone(),
            supersedes: self.fences.supersedes.clone(),
        });
        request.set_timeout(TIMEOUT);
        let mut client = RaftClient::new(channel.clone());
        let call = self.peers.noting(client.hello(request));
        match tokio::time::timeout(TIMEOUT, call).await {
            Ok(answer) => answer.map(|answer| (answer.into_inner(), channel)),
            Err(_) => Err(Status::deadline_exceeded("no answer")),
        }
    }

    /// Handles the answer of the master at `address`.
    fn met(&self, address: &str, answer: HelloResponse) {
        if answer.cluster_id != self.cluster_id {
            // The answer of a lost cluster's member, which has now been told.
            return;
        }
        if answer.removed {
            let (id, by) = (self.node_id, answer.node_id);
            self.leave(&format!("this master (id {id}) is no member any more, says master {by} that leads"));
            return;
        }
        // The address it was reached at is newer than what other peers know, so it is learned last.
        for peer in answer.peers {
            self.peers.learn(peer.node_id, &peer.address);
        }
        self.peers.learn(answer.node_id, address);
    }

    /// Answers a master that asks which master is here.
    pub(crate) fn answer_hello(&self, request: &HelloRequest) -> Result<HelloResponse, Box<Status>> {
        let mut answer = HelloResponse {
            cluster_id: self.cluster_id.clone(),
            node_id: self.node_id,
            ..Default::default()
        };
        if request.supersedes.contains(&self.cluster_id) {
            self.superseded(&request.cluster_id);
            return Ok(answer);
        }
        self.same_cluster(&request.cluster_id)?;
        answer.removed = self.has_removed(request.node_id);
        if !answer.removed {
            self.peers.learn(request.node_id, &request.peer_address);
        }
        let address = |(node_id, address)| PeerAddress { node_id, address };
        answer.peers = self.peers.learned().into_iter().map(address).collect();
        Ok(answer)
    }

    /// Refuses a call from another cluster; tells members of a cluster that this one replaces that theirs
    /// is superseded.
    pub(crate) fn same_cluster(&self, cluster_id: &str) -> Result<(), Box<Status>> {
        if cluster_id == self.cluster_id {
            return Ok(());
        }
        let mine = &self.cluster_id;
        let mut status = Status::permission_denied(format!("this is cluster {mine}, not {cluster_id}"));
        if self.fences.supersedes.iter().any(|lost| lost == cluster_id)
            && let Ok(mine) = mine.parse()
        {
            status.metadata_mut().insert(SUPERSEDED_KEY, mine);
        }
        Err(Box::new(status))
    }

    /// Returns whether this master leads and `id`, which claims to be a member, is none. An id is a member
    /// before its owner learns of it, and is never used again.
    fn has_removed(&self, id: NodeId) -> bool {
        self.leadership.borrow().leading && self.membership.lacks(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_become_rarer() {
        let mut rounds = Rounds::default();
        let asked: Vec<usize> = (0..40).filter(|_| rounds.due()).collect();
        assert_eq!(asked, [0, 1, 3, 7, 15, 23, 31, 39]);
    }
}
