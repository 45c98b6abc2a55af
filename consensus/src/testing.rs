//! A cluster of one master for tests of other folders: real log, real store, no peers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto_env::Env;

use crate::{
    AutopilotConfig, Consensus, ConsensusConfig, DEFAULT_ELECTION_MAX, DEFAULT_ELECTION_MIN,
    DEFAULT_HEARTBEAT, DEFAULT_LOG_BYTES, DEFAULT_SNAPSHOT_COUNT, DiskReserve, Error, FIRST_NODE_ID,
    MasterAddress, Objects,
};

/// Starts a master in `data_dir` that is its own cluster, and waits until it leads.
pub async fn lone_master(data_dir: &Path, env: &Env) -> Result<Arc<Consensus>, Error> {
    let config = ConsensusConfig {
        node_id: FIRST_NODE_ID,
        cluster_id: "lone".to_owned(),
        address: MasterAddress {
            name: "lone".to_owned(),
            peer_address: "127.0.0.1:6444".to_owned(),
            api_address: "127.0.0.1:6443".to_owned(),
            replaces: 0,
        },
        data_dir: data_dir.to_owned(),
        data_key: [7; 32],
        heartbeat: DEFAULT_HEARTBEAT,
        election_min: DEFAULT_ELECTION_MIN,
        election_max: DEFAULT_ELECTION_MAX,
        log_bytes: DEFAULT_LOG_BYTES,
        snapshot_count: DEFAULT_SNAPSHOT_COUNT,
        disk_reserve: DiskReserve::default(),
        objects: Objects::Sled,
        started_before: false,
        autopilot: AutopilotConfig::default(),
        peers: Vec::new(),
    };
    let consensus = Consensus::start(config, env.clone()).await?;
    consensus.initialize().await?;
    let mut leadership = consensus.leadership();
    match tokio::time::timeout(Duration::from_secs(20), leadership.wait_for(|now| now.leading)).await {
        Ok(Ok(_)) => Ok(consensus.clone()),
        _ => Err(Error::Raft("the lone master does not lead".to_owned())),
    }
}
