//! One Ephor store in a process of its own, as `store` starts it: the consensus
//! over mutual TLS, and a put for clients on a second port, over TLS as well.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use consensus::{
    Consensus, ConsensusConfig, DEFAULT_ELECTION_MAX, DEFAULT_ELECTION_MIN, DEFAULT_HEARTBEAT,
    DEFAULT_LOG_BYTES, FIRST_NODE_ID, MasterAddress, Objects, ProposeOptions,
};
use proto_env::grpc::incoming;
use proto_env::{CancellationToken, Env, Network, TlsNetwork};
use storage::{Mutation, Txn, TxnOutcome};
use tonic::transport::Server;

use crate::etcd::{self, PutRequest, PutResponse};
use crate::pki;

/// How a member is started.
#[derive(clap::Args)]
pub struct Arguments {
    /// Its id; the first initializes the cluster.
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
    /// Others to add once this one leads: their peer addresses; their ids go to
    /// standard output, one a line.
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
        replaces: 0,
    };
    let config = ConsensusConfig {
        node_id: arguments.id,
        cluster_id: "bench".to_owned(),
        address: address(&arguments.peer),
        data_dir: arguments.data,
        data_key: [1; 32],
        heartbeat: DEFAULT_HEARTBEAT,
        election_min: DEFAULT_ELECTION_MIN * 4,
        election_max: DEFAULT_ELECTION_MAX * 4,
        log_bytes: DEFAULT_LOG_BYTES,
        objects: Objects::Sled,
        started_before: false,
        autopilot: consensus::AutopilotConfig::default(),
        peers: Vec::new(),
    };
    let consensus = Consensus::start(config, env).await?;
    let raft = Server::builder().add_service(consensus.raft_service()).serve_with_incoming(incoming(peers));
    let puts = consensus.clone();
    let kv = etcd::server(move |request| put(puts.clone(), request));
    let kv = Server::builder().add_routes(kv).serve_with_incoming(incoming(clients));
    if arguments.id == FIRST_NODE_ID {
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

async fn put(consensus: Arc<Consensus>, request: PutRequest) -> Result<PutResponse, tonic::Status> {
    let key =
        String::from_utf8(request.key).map_err(|error| tonic::Status::invalid_argument(error.to_string()))?;
    let mutations = vec![Mutation::Put { key, value: Bytes::from(request.value) }];
    let txn = Txn { preconditions: vec![], mutations };
    match consensus.propose(txn, ProposeOptions::default()).await {
        Ok(TxnOutcome::Committed { .. }) => Ok(PutResponse {}),
        Ok(other) => Err(tonic::Status::aborted(format!("{other:?}"))),
        Err(error) => Err(tonic::Status::unavailable(error.to_string())),
    }
}
