//! Who may stand for election, and who grants a vote.

use std::time::{Duration, Instant};

use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::{VoteRequest, VoteResponse};
use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{MASTERS_ORGANIZATION, Purpose};
use proto_wire::raft::RaftMessage;
use proto_wire::raft::raft_client::RaftClient;
use storage::codec::{decode, encode};

use super::harness::*;
use crate::network::{CLUSTER_KEY, TARGET_KEY};
use crate::raft_types::{TypeConfig, Vote};

/// Asks a master for its pre-vote in the next term, as a candidate with the same log.
async fn pre_vote(cluster: &Cluster, asked: usize, candidate: usize) -> bool {
    let voter = cluster.consensus(asked);
    let (term, last_log) = {
        let metrics = voter.raft.metrics();
        let term = metrics.borrow_watched().current_term;
        (term, voter.raft.data_metrics().borrow_watched().last_log)
    };
    let vote = Vote::new(term + 1, cluster.masters[candidate].id);
    let request: VoteRequest<TypeConfig> = VoteRequest::new(vote, last_log);
    let options = ChannelOptions {
        purpose: Purpose::Peer,
        organization: Some(MASTERS_ORGANIZATION),
        connect_timeout: LONG,
    };
    let network = cluster.masters[candidate].network.clone();
    let channel = channel(network, &cluster.masters[asked].address.to_string(), options).unwrap();
    let mut message = tonic::Request::new(RaftMessage { payload: encode("raft request", &request).unwrap() });
    message.metadata_mut().insert(CLUSTER_KEY, voter.cluster_id().parse().unwrap());
    message.metadata_mut().insert(TARGET_KEY, voter.node_id().into());
    let answer = RaftClient::new(channel).pre_vote(message).await.unwrap().into_inner();
    let answer: VoteResponse<TypeConfig> = decode("raft response", &answer.payload).unwrap();
    answer.vote_granted
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_grants_no_pre_vote_until_it_misses_the_leader_too() {
    let mut cluster = Cluster::of(3).await;
    cluster.converge().await;
    let leader = cluster.leader().await;
    let [voter, candidate] = [1, 2].map(|step| (leader + step) % 3);
    assert!(!pre_vote(&cluster, voter, candidate).await, "the leader is alive");
    // The leader was late lately, so the voter is more patient than openraft's lease.
    cluster.consensus(voter).elections.remember_silence(Duration::from_millis(1500));
    cluster.kill(candidate).await;
    let ended = Instant::now();
    cluster.kill(leader).await;
    let consensus = cluster.consensus(voter).clone();
    let mut refused = Duration::ZERO;
    loop {
        let granted = pre_vote(&cluster, voter, candidate).await;
        // Asked afterwards: the voter may begin to miss the leader meanwhile.
        if granted {
            assert!(consensus.elections.misses_leader(), "granted {:?} after the end", ended.elapsed());
            break;
        }
        refused = ended.elapsed();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // openraft's lease alone ends after a second.
    assert!(refused > Duration::from_millis(2000), "granted {refused:?} after the leader's end");
}
