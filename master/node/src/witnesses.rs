//! What the other masters hear of the nodes. A leader that is deaf, or that nobody reaches, must not take all nodes
//! for dead: `liveness.rs` asks here before it calls a node silent. Answered by `peer.rs` on each master.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use consensus::Consensus;
use futures::future::join_all;
use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{MASTERS_ORGANIZATION, Network, Purpose};
use proto_wire::cluster::liveness_client::LivenessClient;
use proto_wire::cluster::{HeardNodesRequest, HeardNodesResponse};

/// A master that takes longer than this to answer has heard nothing.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A node that a master hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeardNode {
    /// Its name.
    pub node: String,
    /// How long ago its last beat came.
    pub ago: Duration,
    /// What its agent said of itself, and why.
    pub ready: bool,
    /// Empty when it is ready.
    pub reason: String,
}

/// Whoever else may hear the nodes.
#[async_trait]
pub trait Witnesses: Send + Sync {
    /// The nodes that others have heard within `within`; nothing from those who do not answer in time.
    async fn heard_within(&self, within: Duration) -> Vec<HeardNode>;
}

/// The other masters, asked over the peer port.
pub struct OtherMasters {
    /// Who they are.
    pub consensus: Arc<Consensus>,
    /// How they are reached.
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
                    tracing::debug!(master = member.name, %error, "does not say which nodes it hears");
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
