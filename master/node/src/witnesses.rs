//! Asks the other masters which nodes they hear. A leader that cannot hear the nodes itself must not take
//! all of them for dead: `liveness.rs` asks here before it calls a node silent; `peer.rs` answers on each
//! master.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use consensus::Consensus;
use futures::future::join_all;
use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{MASTERS_ORGANIZATION, Network, Purpose};
use proto_wire::cluster::liveness_client::LivenessClient;
use proto_wire::cluster::{HeardNodesRequest, HeardNodesResponse};

/// Deadline for a master's answer; one that takes longer counts as having heard nothing.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A node that another master hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeardNode {
    /// Name of the node.
    pub node: String,
    /// Time since its last beat.
    pub ago: Duration,
    /// Whether the node's agent reported the node as ready.
    pub ready: bool,
    /// Why the node is not ready; empty if it is ready.
    pub reason: String,
}

/// Other masters that may hear the nodes.
#[async_trait]
pub trait Witnesses: Send + Sync {
    /// Returns the nodes that others have heard within `within`; ignores masters that do not answer in time.
    async fn heard_within(&self, within: Duration) -> Vec<HeardNode>;
}

/// The other masters of the cluster, asked over the peer port.
pub struct OtherMasters {
    /// Tells who the other masters are.
    pub consensus: Arc<Consensus>,
    /// The network to reach them by.
    pub network: Arc<dyn Network>,
}

#[async_trait]
impl Witnesses for OtherMasters {
    async fn heard_within(&self, within: Duration) -> Vec<HeardNode> {
        let own = self.consensus.node_id();
        let others = self.consensus.members().into_iter().filter(|member| member.id != own);
        let questions = others.map(|member| async move {
            let answer =
                tokio::time::timeout(TIMEOUT, ask(&self.network, &member.peer_address, within)).await;
            match answer {
                Ok(Ok(answer)) => answer.nodes,
                Ok(Err(error)) => {
                    tracing::debug!(master = member.name, %error, "a master does not say which nodes it hears");
                    Vec::new()
                }
                Err(_) => Vec::new(),
            }
        });
        let answers = join_all(questions).await.into_iter().flatten();
        answers
            .map(|node| HeardNode {
                node: node.node,
                ago: Duration::from_millis(node.ago_ms),
                ready: node.ready,
                reason: node.reason,
            })
            .collect()
    }
}

async fn ask(
    network: &Arc<dyn Network>,
    address: &str,
    within: Duration,
) -> Result<HeardNodesResponse, tonic::Status> {
    let options = ChannelOptions {
        purpose: Purpose::Peer,
        organization: Some(MASTERS_ORGANIZATION),
        connect_timeout: TIMEOUT,
    };
    let channel = channel(network.clone(), address, options)
        .map_err(|error| tonic::Status::from_error(Box::new(error)))?;
    let mut master = LivenessClient::new(channel).max_decoding_message_size(proto_wire::MESSAGE_LIMIT_BYTES);
    let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    Ok(master.heard_nodes(HeardNodesRequest { within_ms }).await?.into_inner())
}
