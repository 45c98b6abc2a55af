//! The peer port: Raft, joining, node liveness and administration on one
//! listener. Each service checks its caller: Raft admits masters, Liveness nodes,
//! Admin `system:masters`, Join anyone with a token.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use consensus::Consensus;
use futures::{Stream, StreamExt};
use proto_env::grpc::PeerInfo;
use proto_env::{Env, MASTERS_ORGANIZATION, NODES_ORGANIZATION, PeerIdentity};
use proto_wire::cluster::liveness_server::Liveness as LivenessApi;
use proto_wire::cluster::{BeatAck, HeardNode, HeardNodesRequest, HeardNodesResponse, NodeBeat};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::liveness::Liveness;
use crate::members::{serving_members, wire_members};

/// Maximum number of queued acknowledgements for one node.
const ACKS_MAX: usize = 8;
/// Time without a beat after which a stream is closed.
const STREAM_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the caller, as its certificate names it.
fn caller<T>(request: &Request<T>) -> Option<&PeerInfo> {
    request.extensions().get::<PeerInfo>()
}

/// Returns the name of the calling node; refuses callers that are not nodes.
fn node_name<T>(request: &Request<T>) -> Result<String, Status> {
    let identity = caller(request).and_then(|p| p.identity.as_ref());
    named_node(identity)
}

/// Returns the name of the node that an identity belongs to.
pub fn named_node(identity: Option<&PeerIdentity>) -> Result<String, Status> {
    identity
        .filter(|i| i.in_organization(NODES_ORGANIZATION))
        .and_then(|i| i.common_name.strip_prefix("system:node:"))
        .map(str::to_owned)
        .ok_or_else(|| Status::unauthenticated("a node certificate is needed"))
}

/// Refuses callers that are neither operators nor masters.
pub fn require_operator<T>(request: &Request<T>) -> Result<(), Status> {
    let allowed = caller(request)
        .is_some_and(|p| p.in_organization("system:masters") || p.in_organization(MASTERS_ORGANIZATION));
    if allowed { Ok(()) } else { Err(Status::permission_denied("only system:masters may ask this")) }
}

/// Implements the Liveness service: receives the beats of nodes.
pub struct LivenessService {
    /// Tells who leads and who the members are.
    pub consensus: Arc<Consensus>,
    /// Records the beats.
    pub liveness: Arc<Liveness>,
    /// Provides the clock and shutdown.
    pub env: Env,
}

impl LivenessService {
    fn ack(consensus: &Consensus, sequence: u64) -> BeatAck {
        let leadership = *consensus.leadership().borrow();
        let members = wire_members(consensus);
        let leader = members.iter().find(|m| Some(m.id) == leadership.leader);
        BeatAck {
            sequence,
            term: leadership.term,
            leader_peer_address: leader.map(|m| m.peer_address.clone()).unwrap_or_default(),
            leading: leadership.leading,
            members: serving_members(consensus),
        }
    }
}

#[tonic::async_trait]
impl LivenessApi for LivenessService {
    type BeatStream = Pin<Box<dyn Stream<Item = Result<BeatAck, Status>> + Send>>;

    async fn beat(
        &self,
        request: Request<Streaming<NodeBeat>>,
    ) -> Result<Response<Self::BeatStream>, Status> {
        let name = node_name(&request)?;
        let mut beats = request.into_inner();
        let (sender, receiver) = mpsc::channel(ACKS_MAX);
        let (consensus, liveness) = (self.consensus.clone(), self.liveness.clone());
        let shutdown = self.env.shutdown.clone();
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    next = tokio::time::timeout(STREAM_TIMEOUT, beats.next()) => next,
                };
                let Ok(Some(Ok(beat))) = next else { return };
                let ack = Self::ack(&consensus, beat.sequence);
                // A follower records beats too, for a leader that cannot hear the node.
                liveness.beat(&name, beat.ready, &beat.reason);
                liveness.certificates(&name, beat.certificates);
                if sender.send(Ok(ack)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn heard_nodes(
        &self,
        request: Request<HeardNodesRequest>,
    ) -> Result<Response<HeardNodesResponse>, Status> {
        if !caller(&request).is_some_and(|caller| caller.in_organization(MASTERS_ORGANIZATION)) {
            return Err(Status::permission_denied("only masters may ask this"));
        }
        let within = Duration::from_millis(request.into_inner().within_ms);
        let nodes = self.liveness.heard_within(within).into_iter().map(|heard| HeardNode {
            node: heard.node,
            ago_ms: u64::try_from(heard.ago.as_millis()).unwrap_or(u64::MAX),
            ready: heard.ready,
            reason: heard.reason,
        });
        Ok(Response::new(HeardNodesResponse { nodes: nodes.collect() }))
    }
}
