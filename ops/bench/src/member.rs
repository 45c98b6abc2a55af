//! Runs one Ephor store in a process of its own, as `store` starts it: the consensus
//! over mutual TLS with production timers, and a part of etcd's API for
//! clients on a second port, also over TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use consensus::{
    Consensus, ConsensusConfig, DEFAULT_ELECTION_MAX, DEFAULT_ELECTION_MIN, DEFAULT_HEARTBEAT,
    DEFAULT_LOG_BYTES, DEFAULT_SNAPSHOT_COUNT, MasterAddress, MemberIdentity, NodeId, Objects,
};
use proto_env::grpc::incoming;
use proto_env::{CancellationToken, Env, Listener, Network, TlsNetwork};
use tonic::transport::Server;

use crate::{etcd, pki};

/// Maximum number of concurrent calls on one connection.
const STREAMS: u32 = 8192;
/// Deadline for adding a member.
const ADD_TIMEOUT: Duration = Duration::from_secs(20);

/// Arguments of `ephor-bench member`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Id of the member.
    #[arg(long)]
    id: NodeId,
    #[arg(long)]
    pki: PathBuf,
    #[arg(long)]
    data: PathBuf,
    #[arg(long)]
    peer: String,
    #[arg(long)]
    client: String,
    /// Factor by which the timers of production are multiplied.
    #[arg(long, default_value = "1")]
    timers: u32,
    /// Peer addresses of members to add to a new cluster, which this member creates;
    /// their ids are printed, one per line.
    #[arg(long)]
    add: Vec<String>,
}

/// Runs a member until it is killed.
pub async fn run(arguments: Arguments) -> Result<()> {
    let network: Arc<dyn Network> = Arc::new(TlsNetwork::new(&pki::load(&arguments.pki)?)?);
    let clients = network.listen(&arguments.client).await?;
    let (id, peer) = (arguments.id, arguments.peer);
    let consensus = start(network.clone(), id, &peer, &arguments.data, arguments.timers).await?;
    let listening = consensus.runtime().run(async move { network.listen(&peer).await });
    let served = serve(consensus.clone(), listening.await??, clients);
    if !arguments.add.is_empty() {
        consensus.initialize().await?;
        consensus.leadership().wait_for(|now| now.leading).await?;
        for peer in &arguments.add {
            println!("{}", consensus.add_master(address(peer), ADD_TIMEOUT).await?);
        }
    }
    tokio::select! {
        served = served => served,
        reason = consensus.failed() => anyhow::bail!(reason),
    }
}

fn address(peer: &str) -> MasterAddress {
    MasterAddress {
        name: peer.to_owned(),
        peer_address: peer.to_owned(),
        api_address: peer.to_owned(),
        replaces: 0,
    }
}

async fn start(
    network: Arc<dyn Network>,
    node_id: NodeId,
    peer: &str,
    data: &Path,
    timers: u32,
) -> Result<Arc<Consensus>> {
    let env = Env::production(network, CancellationToken::new());
    let config = ConsensusConfig {
        node_id,
        cluster_id: "bench".to_owned(),
        address: address(peer),
        started_before: MemberIdentity::load(data, env.disk.as_ref())?.is_some(),
        data_dir: data.to_owned(),
        data_key: [1; 32],
        heartbeat: DEFAULT_HEARTBEAT * timers,
        election_min: DEFAULT_ELECTION_MIN * timers,
        election_max: DEFAULT_ELECTION_MAX * timers,
        log_bytes: DEFAULT_LOG_BYTES,
        snapshot_count: DEFAULT_SNAPSHOT_COUNT,
        disk_reserve: consensus::DiskReserve::default(),
        autopilot: consensus::AutopilotConfig { dead_after: None, learner_expiry: None },
        peers: Vec::new(),
        objects: Objects::Sled,
    };
    Ok(Consensus::start(config, env).await?)
}

async fn serve(
    consensus: Arc<Consensus>,
    peers: Box<dyn Listener>,
    clients: Box<dyn Listener>,
) -> Result<()> {
    let raft = Server::builder().add_service(consensus.raft_service()).serve_with_incoming(incoming(peers));
    let raft = async { Ok::<_, anyhow::Error>(consensus.runtime().run(raft).await??) };
    let kv = Server::builder().max_concurrent_streams(STREAMS).add_routes(etcd::serve(&consensus));
    let kv = kv.serve_with_incoming(incoming(clients));
    tokio::try_join!(raft, async { Ok(kv.await?) })?;
    Ok(())
}

/// Starts a member that is a cluster of its own and returns its client address: for tests.
#[cfg(test)]
pub async fn alone(network: Arc<dyn Network>, directory: &Path) -> Result<(Arc<Consensus>, String)> {
    let (peers, clients) = (network.listen("127.0.0.1:0").await?, network.listen("127.0.0.1:0").await?);
    let (peer, client) = (peers.local_address().to_string(), clients.local_address().to_string());
    let consensus = start(network, consensus::FIRST_NODE_ID, &peer, &directory.join("data"), 1).await?;
    tokio::spawn(serve(consensus.clone(), peers, clients));
    consensus.initialize().await?;
    consensus.leadership().wait_for(|now| now.leading).await?;
    Ok((consensus, client))
}
