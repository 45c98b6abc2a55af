//! openraft's network: one client per target, over the lanes of [`Peers`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use proto_env::planted::{self, Bug};
use proto_wire::raft::RaftMessage;
use serde::Serialize;
use serde::de::DeserializeOwned;
use storage::codec::{decode, encode};

use super::{CallError, Lane, Peers, append, snapshot};
use crate::raft_types::{MasterAddress, SnapshotData, TypeConfig, Vote};
use crate::state_machine::RaftSnapshot;
use crate::types::NodeId;

/// Bound on an append with entries: a slow disk at the other end. Liveness is the
/// heartbeats' business.
pub(super) const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// A link at least this fast, in bytes a second, brings any append through: it may
/// take longer the larger it is, or it would be sent again and again for ever.
const SLOWEST_LINK: u64 = 256 * 1024;

/// Makes the clients.
pub(crate) struct Factory {
    pub(crate) peers: Arc<Peers>,
}

/// A client of one target.
pub(crate) struct PeerClient {
    peers: Arc<Peers>,
    target: NodeId,
    node: MasterAddress,
    lane: Lane,
}

/// Which call.
#[derive(Clone, Copy)]
enum Method {
    Append,
    Vote,
    PreVote,
    TransferLeader,
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = PeerClient;

    /// Called when a term's replication begins. What carried the entries of an
    /// earlier one may have died unseen while nothing was sent, and the first
    /// append of a new leader would find that out after [`APPEND_TIMEOUT`].
    async fn new_client(&mut self, target: NodeId, node: &MasterAddress) -> PeerClient {
        self.peers.forget(target, Lane::Append);
        PeerClient { peers: self.peers.clone(), target, node: node.clone(), lane: Lane::Append }
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &MasterAddress) -> PeerClient {
        PeerClient { peers: self.peers.clone(), target, node: node.clone(), lane: Lane::Control }
    }

    async fn new_snapshot_client(&mut self, target: NodeId, node: &MasterAddress) -> PeerClient {
        PeerClient { peers: self.peers.clone(), target, node: node.clone(), lane: Lane::Snapshot }
    }
}

/// How much longer a message may take for its size.
pub(super) fn transfer(payload: &[u8]) -> Duration {
    Duration::from_millis(payload.len() as u64 * 1000 / SLOWEST_LINK)
}

pub(super) fn unreachable(error: impl std::fmt::Display) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(error))
}

impl PeerClient {
    async fn exchange<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        lane: Lane,
        request: &Q,
        deadline: Duration,
    ) -> Result<A, RPCError<TypeConfig>> {
        let payload = encode("raft request", request).map_err(unreachable)?;
        // A heartbeat must be answered at once, and is small.
        let on_its_way = if lane == Lane::Control { Duration::ZERO } else { transfer(&payload) };
        let deadline = deadline + on_its_way;
        let message = RaftMessage { cluster_id: self.peers.cluster_id.clone(), payload };
        let answer = self.send(method, lane, message, deadline).await.map_err(unreachable)?;
        decode("raft response", &answer.payload).map_err(unreachable)
    }

    async fn send(
        &self,
        method: Method,
        lane: Lane,
        message: RaftMessage,
        deadline: Duration,
    ) -> Result<RaftMessage, CallError> {
        let mut client = self.peers.client(self.target, &self.node.peer_address, lane)?;
        let request = self.peers.request(self.target, message);
        let call = async {
            match method {
                Method::Append => client.append_entries(request).await,
                Method::Vote => client.vote(request).await,
                Method::PreVote => client.pre_vote(request).await,
                Method::TransferLeader => client.transfer_leader(request).await,
            }
        };
        self.peers.call(self.target, lane, deadline, call).await
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let deadline = match self.lane {
            // Below openraft's own limit, so that the lane sees what is late.
            Lane::Control => option.soft_ttl(),
            _ => APPEND_TIMEOUT,
        };
        let answer = self.exchange(Method::Append, self.lane, &rpc, deadline).await;
        // Planted: no answer counts as one that says the entries are stored.
        if planted::is(Bug::CommitWithoutQuorum) && answer.is_err() {
            return Ok(AppendEntriesResponse::Success);
        }
        answer
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, append::Answer>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        // Planted: see `append_entries`, which this leads to.
        if planted::is(Bug::CommitWithoutQuorum) {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let client = self.peers.client(self.target, &self.node.peer_address, self.lane);
            let client = client.map_err(unreachable)?;
            let answers = append::open(self.peers.clone(), self.target, client, input).await?;
            Ok::<BoxStream<'s, _>, _>(Box::pin(answers))
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.exchange(Method::Vote, Lane::Control, &rpc, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.exchange(Method::PreVote, Lane::Control, &rpc, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let client = self
            .peers
            .client(self.target, &self.node.peer_address, self.lane)
            .map_err(|error| StreamingError::Unreachable(Unreachable::from_string(error)))?;
        let sent = snapshot::send(&self.peers, self.target, client, vote, snapshot);
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            result = sent => {
                result.map_err(|error| StreamingError::Unreachable(Unreachable::from_string(error)))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.exchange(Method::TransferLeader, Lane::Control, &req, option.hard_ttl()).await
    }
}
