//! One Ephor store in a process of its own, as `store` starts it: the consensus
//! over mutual TLS with the timers of production, and a part of etcd's API for
//! clients on a second port, over TLS as well.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use consensus::{
    Consensus, ConsensusConfig, DEFAULT_ELECTION_MAX, DEFAULT_ELECTION_MIN, DEFAULT_HEARTBEAT,
    DEFAULT_LOG_BYTES, Identity, MasterAddress, Objects,
};
use proto_env::grpc::incoming;
use proto_env::{CancellationToken, Env, Network, TlsNetwork};
use tonic::transport::Server;

use crate::{etcd, pki};

/// Calls at once on one connection.
const STREAMS: u32 = 8192;

/// How a member is started.
#[derive(clap::Args)]
pub struct Arguments {
    /// Its id.
    #[arg(long)]
    id: u64,
    #[arg(long)]
    pki: PathBuf,
    #[arg(long)]
    data: PathBuf,
    #[arg(long)]
    peer: String,
    #[arg(long)]
    client: String,
    /// Multiplies the timers of production.
    #[arg(long, default_value = "1")]
    timers: u32,
    /// Initializes the cluster and adds these: their peer addresses; their ids go
    /// to standard output, one a line.
    #[arg(long)]
    add: Vec<String>,
}

/// Runs a member until it is killed.
pub async fn run(arguments: Arguments) -> Result<()> {
    let network: Arc<dyn Network> = Arc::new(TlsNetwork::new(&pki::load(&arguments.pki)?)?);
    let env = Env::production(network.clone(), CancellationToken::new());
    let peers = network.listen(&arguments.peer).await?;
    let clients = network.listen(&arguments.client).await?;
    let address = |peer: &str| MasterAddress {
        name: peer.to_owned(),
        peer_address: peer.to_owned(),
        api_address: peer.to_owned(),
    };
    let config = ConsensusConfig {
        node_id: arguments.id,
        cluster_id: "bench".to_owned(),
        address: address(&arguments.peer),
        started_before: Identity::load(&arguments.data, env.disk.as_ref())?.is_some(),
        data_dir: arguments.data,
        data_key: [1; 32],
        heartbeat: DEFAULT_HEARTBEAT * arguments.timers,
        election_min: DEFAULT_ELECTION_MIN * arguments.timers,
        election_max: DEFAULT_ELECTION_MAX * arguments.timers,
        log_bytes: DEFAULT_LOG_BYTES,
        objects: Objects::Sled,
    };
    let consensus = Consensus::start(config, env).await?;
    let raft = Server::builder().add_service(consensus.raft_service()).serve_with_incoming(incoming(peers));
    let kv = Server::builder().max_concurrent_streams(STREAMS).add_routes(etcd::serve(&consensus));
    let kv = kv.serve_with_incoming(incoming(clients));
    if !arguments.add.is_empty() {
        consensus.initialize().await?;
        consensus.leadership().wait_for(|now| now.leading).await?;
        for peer in &arguments.add {
            println!("{}", consensus.add_master(address(peer), Duration::from_secs(20)).await?);
        }
    }
    tokio::select! {
        served = raft => served?,
        served = kv => served?,
        reason = consensus.failed() => anyhow::bail!(reason),
    }
    Ok(())
}
