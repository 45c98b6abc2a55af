//! The gRPC service that masters call on each other. Every caller must have authenticated as a master of
//! this cluster; messages then go to openraft, to the proposer or to the membership.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest, VoteResponse};
use openraft::{ServerState, Snapshot};
use proto_env::MASTERS_ORGANIZATION;
use proto_env::grpc::PeerInfo;
use proto_wire::MESSAGE_LIMIT_BYTES;
use proto_wire::raft::raft_server::{Raft as RaftRpc, RaftServer};
use proto_wire::raft::{
    ChangeMembershipRequest, ChangeMembershipResponse, CompareRequest, CompareResponse, FetchSnapshotRequest,
    HelloRequest, HelloResponse, ProposeRequest, ProposeResponse, RaftMessage, ReadIndexRequest,
    ReadIndexResponse, SnapshotChunk,
};
use serde::Serialize;
use storage::Command;
use storage::codec::{decode, encode};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status, Streaming};

use crate::consensus::Consensus;
use crate::membership::MembershipChange;
use crate::network::{ADDRESS_KEY, CLUSTER_KEY, NODE_ID_KEY, TARGET_KEY, snapshot};
use crate::proposer::{Arrival, BATCH_COMMANDS};
use crate::raft_types::{SnapshotData, TypeConfig};
use crate::types::NodeId;

/// Maximum time for which the leader tries to write a follower's proposals.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time subtracted from a follower's deadline, so that the leader's verdict is back in time.
const ANSWER_MARGIN: Duration = Duration::from_millis(50);

/// The service of one master.
#[derive(Clone)]
pub struct RaftService(Arc<Consensus>);

/// The service, with a check that the caller is a master.
pub type MastersOnly =
    InterceptedService<RaftServer<RaftService>, fn(Request<()>) -> Result<Request<()>, Status>>;

type Answer<T> = Result<Response<T>, Status>;
/// The stream of answers of a call that stays open.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Consensus {
    /// Returns the service for the peer port, which may be served beside other services. The server must
    /// accept through `proto_env::grpc::incoming`.
    pub fn raft_service(self: &Arc<Self>) -> MastersOnly {
        let service = RaftServer::new(RaftService(self.clone()))
            .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
            .max_encoding_message_size(MESSAGE_LIMIT_BYTES);
        // The caller is checked before any message is read, because messages may be large.
        InterceptedService::new(service, masters_only)
    }
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn masters_only(request: Request<()>) -> Result<Request<()>, Status> {
    let info = request.extensions().get::<PeerInfo>();
    if info.is_some_and(|info| info.in_organization(MASTERS_ORGANIZATION)) {
        return Ok(request);
    }
    Err(Status::permission_denied("only masters may call this"))
}

fn damaged(error: storage::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

fn fatal(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

fn caller<T>(request: &Request<T>) -> Option<NodeId> {
    request.metadata().get(NODE_ID_KEY)?.to_str().ok()?.parse().ok()
}

/// Answers each message of a call before the next one is read. The caller also waits until the committed
/// entries reach it through the log, so it is sent the committed index at once.
fn one_by_one<Q: Send + 'static, A: Send + 'static>(
    service: &RaftService,
    request: Request<Streaming<Q>>,
    answer: fn(RaftService, Q) -> BoxFuture<'static, Result<A, Status>>,
) -> Response<Answers<A>> {
    let service = service.clone();
    let urge = caller(&request).map(|node| service.0.peers.urges(node));
    let answers = service.until_stopped(request.into_inner()).then(move |message| {
        let (service, urge) = (service.clone(), urge.clone());
        async move {
            let answered = answer(service, message?).await;
            if let Some(urge) = urge {
                urge.notify_one();
            }
            answered
        }
    });
    Response::new(Box::pin(answers))
}

impl RaftService {
    /// Refuses calls from another cluster and calls meant for another master, and remembers the address on
    /// which the caller listens.
    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let text = |key| request.metadata().get(key).and_then(|value| value.to_str().ok());
        // Checked first: a caller from a lost cluster must learn that its cluster is superseded.
        self.0.same_cluster(text(CLUSTER_KEY).unwrap_or_default()).map_err(|status| *status)?;
        if text(TARGET_KEY).and_then(|target| target.parse().ok()) != Some(self.0.node_id) {
            return Err(Status::failed_precondition(format!("this is master {}", self.0.node_id)));
        }
        if let (Some(node), Some(address)) = (caller(request), text(ADDRESS_KEY)) {
            self.0.peers.learn(node, address);
        }
        Ok(())
    }

    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    fn open<T: serde::de::DeserializeOwned>(&self, request: Request<RaftMessage>) -> Result<T, Status> {
        self.admit(&request)?;
        let message = request.into_inner();
        decode("raft request", &message.payload).map_err(damaged)
    }

    /// Returns the messages of a call until this master stops, because an open call must not delay the
    /// server's shutdown.
    fn until_stopped<Q>(&self, messages: Streaming<Q>) -> impl Stream<Item = Result<Q, Status>> + use<Q> {
        futures::StreamExt::take_until(messages, self.0.stop.clone().cancelled_owned())
    }

    /// Answers AppendEntries requests in order, until a message cannot be read or the call breaks.
    fn append_all(&self, messages: Streaming<RaftMessage>) -> Answers<RaftMessage> {
        let this = self.0.clone();
        let requests = self.until_stopped(messages).map_while(move |message| {
            let request = decode("raft request", &message.ok()?.payload);
            let request: AppendEntriesRequest<TypeConfig> =
                request.inspect_err(|error| tracing::warn!(%error, "an append cannot be read")).ok()?;
            // Noted before the write: the request shows that the leader lives, however long the write takes
            // here.
            if request.vote.committed && request.vote.leader_id.term >= this.leadership.borrow().term {
                this.elections.heard();
            }
            Some(request)
        });
        let (service, stopped) = (self.clone(), self.0.stop.clone().cancelled_owned());
        let answers = self.0.raft.stream_append(requests);
        let answers = answers.map(move |answer| service.message(&answer.map_err(fatal)?));
        // An answer that the consensus still owes must not delay the server's shutdown either.
        Box::pin(futures::StreamExt::take_until(answers, stopped))
    }

    /// Returns the refusal of a pre-vote while this master does not miss the leader; `None`: openraft
    /// decides. openraft itself refuses only during the leader's lease, without regard to the delays
    /// measured here.
    fn refuse_pre_vote(&self) -> Option<VoteResponse<TypeConfig>> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let follows = metrics.state == ServerState::Follower && metrics.vote.committed;
        let refuses = follows && !self.0.elections.misses_leader();
        let last_log = || self.0.raft.data_metrics().borrow_watched().last_log;
        refuses.then(|| VoteResponse::new(metrics.vote, last_log(), false))
    }

    async fn propose_all(&self, message: ProposeRequest) -> Result<ProposeResponse, Status> {
        if message.commands.len() > BATCH_COMMANDS {
            return Err(Status::invalid_argument(format!("more than {BATCH_COMMANDS} commands")));
        }
        let deadline = Duration::from_millis(message.deadline_ms).min(PROPOSE_TIMEOUT);
        let deadline = deadline.saturating_sub(ANSWER_MARGIN);
        let commands: Vec<Command> = message
            .commands
            .iter()
            .map(|command| decode("command", command))
            .collect::<storage::Result<_>>()
            .map_err(damaged)?;
        let arrival = if commands.len() > 1 { Arrival::WithOthers } else { Arrival::Single };
        let proposals = commands.into_iter().map(|command| self.0.propose_here(command, arrival, deadline));
        let verdicts = join_all(proposals).await;
        Ok(ProposeResponse { verdicts: encode("verdicts", &verdicts).map_err(damaged)? })
    }

    async fn read_index_now(&self) -> Result<ReadIndexResponse, Status> {
        let (log_index, error) = match self.0.reads.index_here().await {
            Ok(index) => (index, String::new()),
            Err(error) => (0, error),
        };
        let leader_hint = self.0.leadership.borrow().leader.unwrap_or(0);
        Ok(ReadIndexResponse { is_leader: error.is_empty(), leader_hint, log_index, error })
    }

    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    fn message<T: Serialize>(&self, answer: &T) -> Result<RaftMessage, Status> {
        let payload = encode("raft response", answer).map_err(damaged)?;
        Ok(RaftMessage { payload })
    }

    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    fn answer<T: Serialize>(&self, answer: &T) -> Answer<RaftMessage> {
        self.message(answer).map(Response::new)
    }
}

#[tonic::async_trait]
impl RaftRpc for RaftService {
    type AppendEntriesStream = Answers<RaftMessage>;

    async fn append_entries(
        &self,
        request: Request<Streaming<RaftMessage>>,
    ) -> Answer<Self::AppendEntriesStream> {
        self.admit(&request)?;
        Ok(Response::new(self.append_all(request.into_inner())))
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Answer<RaftMessage> {
        let vote: VoteRequest<TypeConfig> = self.open(request)?;
        self.answer(&self.0.raft.vote(vote).await.map_err(fatal)?)
    }

    async fn pre_vote(&self, request: Request<RaftMessage>) -> Answer<RaftMessage> {
        let vote: VoteRequest<TypeConfig> = self.open(request)?;
        if let Some(refusal) = self.refuse_pre_vote() {
            return self.answer(&refusal);
        }
        self.answer(&self.0.raft.pre_vote(vote).await.map_err(fatal)?)
    }

    async fn transfer_leader(&self, request: Request<RaftMessage>) -> Answer<RaftMessage> {
        let transfer: TransferLeaderRequest<TypeConfig> = self.open(request)?;
        self.answer(&self.0.raft.handle_transfer_leader(transfer).await.map_err(fatal)?)
    }

    async fn install_snapshot(&self, request: Request<Streaming<SnapshotChunk>>) -> Answer<RaftMessage> {
        self.admit(&request)?;
        let chunks = request.into_inner();
        // Runs on the main runtime: decoding a whole state would delay heartbeats.
        let (store, blocking) = (self.0.store.clone(), self.0.env.blocking);
        let main = self.0.runtime.main();
        let received = main.spawn(async move { snapshot::receive(&store, blocking, chunks).await });
        let (vote, meta, staged) = received.await.map_err(fatal)??;
        tracing::info!(revision = staged.revision(), "installing a snapshot");
        let snapshot = Snapshot { meta, snapshot: SnapshotData::Staged(Box::new(staged)) };
        self.answer(&self.0.raft.install_full_snapshot(vote, snapshot).await.map_err(fatal)?)
    }

    type ProposeStream = Answers<ProposeResponse>;

    async fn propose(&self, request: Request<Streaming<ProposeRequest>>) -> Answer<Self::ProposeStream> {
        self.admit(&request)?;
        Ok(one_by_one(self, request, |service, message| {
            Box::pin(async move { service.propose_all(message).await })
        }))
    }

    type ReadIndexStream = Answers<ReadIndexResponse>;

    async fn read_index(
        &self,
        request: Request<Streaming<ReadIndexRequest>>,
    ) -> Answer<Self::ReadIndexStream> {
        self.admit(&request)?;
        Ok(one_by_one(self, request, |service, _| Box::pin(async move { service.read_index_now().await })))
    }

    async fn change_membership(
        &self,
        request: Request<ChangeMembershipRequest>,
    ) -> Answer<ChangeMembershipResponse> {
        self.admit(&request)?;
        let message = request.into_inner();
        let change: MembershipChange = decode("membership change", &message.change).map_err(damaged)?;
        let reply = self.0.membership.carry_out(change).await;
        Ok(Response::new(ChangeMembershipResponse {
            reply: encode("membership reply", &reply).map_err(damaged)?,
        }))
    }

    async fn compare(&self, request: Request<CompareRequest>) -> Answer<CompareResponse> {
        self.admit(&request)?;
        let from = caller(&request);
        let message = request.into_inner();
        Ok(Response::new(self.0.compare_here(from, message)))
    }

    type FetchSnapshotStream = ReceiverStream<Result<SnapshotChunk, Status>>;

    async fn fetch_snapshot(
        &self,
        request: Request<FetchSnapshotRequest>,
    ) -> Answer<Self::FetchSnapshotStream> {
        self.admit(&request)?;
        let message = request.into_inner();
        tracing::info!(index = message.index, "a replica takes this master's state");
        self.0.give_snapshot(message.index).await.map(Response::new)
    }

    async fn hello(&self, request: Request<HelloRequest>) -> Answer<HelloResponse> {
        self.0.answer_hello(request.get_ref()).map(Response::new).map_err(|status| *status)
    }
}
