//! openraft's network: one client per target master, over the lanes of [`Peers`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use proto_env::planted::{self, Bug};
use proto_wire::raft::RaftMessage;
use proto_wire::raft::raft_client::RaftClient;
use serde::Serialize;
use serde::de::DeserializeOwned;
use storage::codec::{decode, encode};
use tokio::sync::watch;
use tonic::transport::Channel;

use super::open_call::OpenCall;
use super::{CallError, Lane, Peers, append, snapshot};
use crate::raft_types::{MasterAddress, SnapshotData, TypeConfig, Vote};
use crate::state_machine::RaftSnapshot;
use crate::types::NodeId;

/// Time limit of an append with entries, long enough for a slow disk at the follower. Heartbeats, not
/// appends, show whether the follower is alive.
pub(super) const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Slowest supported link, in bytes a second. The time limit of an append grows with its size accordingly;
/// otherwise a large append on a slow link would be resent for ever.
const SLOWEST_LINK: u64 = 256 * 1024;

/// Makes the clients for openraft.
pub(crate) struct Factory {
    pub(crate) peers: Arc<Peers>,
    /// See [`LogStore::given_out`](crate::log_store::LogStore::given_out).
    pub(crate) given_out: watch::Receiver<Option<u64>>,
}

/// A client of one target master.
pub(crate) struct PeerClient {
    peers: Arc<Peers>,
    target: NodeId,
    node: MasterAddress,
    lane: Lane,
    given_out: watch::Receiver<Option<u64>>,
    /// The open call that carries heartbeats; `None` if its last heartbeat was not answered.
    beats: Option<OpenCall<RaftMessage, RaftMessage>>,
}

/// The method of a call.
#[derive(Clone, Copy)]
enum Method {
    Vote,
    PreVote,
    TransferLeader,
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = PeerClient;

    /// Makes the client when a term's replication begins. The connection of an earlier term may have broken
    /// unnoticed while nothing was sent, and a new leader's first append would notice only after
    /// [`APPEND_TIMEOUT`], so a new connection is made.
    async fn new_client(&mut self, target: NodeId, node: &MasterAddress) -> PeerClient {
        self.peers.forget(target, Lane::Append);
        self.client(target, node, Lane::Append)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &MasterAddress) -> PeerClient {
        self.client(target, node, Lane::Control)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, node: &MasterAddress) -> PeerClient {
        self.client(target, node, Lane::Snapshot)
    }
}

impl Factory {
    fn client(&self, target: NodeId, node: &MasterAddress, lane: Lane) -> PeerClient {
        let (peers, given_out) = (self.peers.clone(), self.given_out.clone());
        PeerClient { peers, target, node: node.clone(), lane, given_out, beats: None }
    }
}

/// Returns how much longer a message may take because of its size.
pub(super) fn transfer(payload: &[u8]) -> Duration {
    Duration::from_millis(payload.len() as u64 * 1000 / SLOWEST_LINK)
}

pub(super) fn unreachable(error: impl std::fmt::Display) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(error))
}

impl PeerClient {
    fn client(&self, lane: Lane) -> Result<RaftClient<Channel>, CallError> {
        self.peers.client(self.target, &self.node.peer_address, lane)
    }

    /// Sends entries and heartbeats, each over a call that stays open.
    async fn append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> Result<BoxStream<'s, append::Answer>, RPCError<TypeConfig>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.lane == Lane::Control {
            let answer = self.beat(input, option.soft_ttl()).await;
            return Ok(Box::pin(futures::stream::iter(answer)));
        }
        let client = || self.client(self.lane);
        let given_out = self.given_out.clone();
        let answers = append::open(self.peers.clone(), self.target, client, given_out, input).await?;
        Ok(Box::pin(answers))
    }

    /// Sends the only request of `input`, a heartbeat.
    async fn beat<S>(&mut self, mut input: S, deadline: Duration) -> Option<append::Answer>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
    {
        let request = input.next().await?;
        Some(self.exchange_beat(&request, deadline).await.map_err(unreachable))
    }

    async fn exchange_beat(
        &mut self,
        request: &AppendEntriesRequest<TypeConfig>,
        deadline: Duration,
    ) -> Result<StreamAppendResult<TypeConfig>, CallError> {
        let local = |error: storage::Error| CallError::Local(error.to_string());
        let message = append::message(request).map_err(local)?;
        let mut client = self.client(Lane::Control)?;
        // The call is taken out, so that it is not used again unless its answer comes in time.
        let call = OpenCall::ask(self.beats.take(), message, async |messages| {
            client.append_entries(self.peers.request(self.target, messages)).await
        });
        let (answer, open) = self.peers.call(self.target, Lane::Control, deadline, call).await?;
        let answer: StreamAppendResult<TypeConfig> =
            decode("raft response", &answer.payload).map_err(local)?;
        // An answer that is an error is the call's last.
        self.beats = answer.is_ok().then_some(open);
        Ok(answer)
    }

    async fn exchange<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        request: &Q,
        deadline: Duration,
    ) -> Result<A, RPCError<TypeConfig>> {
        let payload = encode("raft request", request).map_err(unreachable)?;
        let message = RaftMessage { payload };
        let answer = self.send(method, message, deadline).await.map_err(unreachable)?;
        decode("raft response", &answer.payload).map_err(unreachable)
    }

    async fn send(
        &self,
        method: Method,
        message: RaftMessage,
        deadline: Duration,
    ) -> Result<RaftMessage, CallError> {
        let mut client = self.client(Lane::Control)?;
        let request = self.peers.request(self.target, message);
        let call = async {
            match method {
                Method::Vote => client.vote(request).await,
                Method::PreVote => client.pre_vote(request).await,
                Method::TransferLeader => client.transfer_leader(request).await,
            }
        };
        self.peers.call(self.target, Lane::Control, deadline, call).await
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotData;

    /// Required by the trait; openraft itself calls only [`Self::stream_append`].
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let one = Box::pin(futures::stream::once(std::future::ready(rpc)));
        let answer = match self.append(one, option).await {
            Ok(mut answers) => answers.next().await.unwrap_or_else(|| Err(unreachable("no answer"))),
            Err(error) => Err(error),
        };
        match answer {
            // Planted: no answer counts as one that says the entries are stored.
            Err(_) if planted::is(Bug::CommitWithoutQuorum) => Ok(AppendEntriesResponse::Success),
            Err(error) => Err(error),
            Ok(Ok(_)) => Ok(AppendEntriesResponse::Success),
            Ok(Err(StreamAppendError::Conflict(_))) => Ok(AppendEntriesResponse::Conflict),
            Ok(Err(StreamAppendError::HigherVote(vote))) => Ok(AppendEntriesResponse::HigherVote(vote)),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, append::Answer>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        // Planted: one after the other, as the bug wants them.
        if planted::is(Bug::CommitWithoutQuorum) {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(self.append(input, option))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.exchange(Method::Vote, &rpc, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.exchange(Method::PreVote, &rpc, option.hard_ttl()).await
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
        self.exchange(Method::TransferLeader, &req, option.hard_ttl()).await
    }
}
