//! A child that runs a cluster of one master: openraft, the state machine and the log store on top of log and
//! objects, with snapshots and purges at their usual times.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use consensus::{
    AutopilotConfig, Consensus, ConsensusConfig, DEFAULT_ELECTION_MAX, DEFAULT_ELECTION_MIN,
    DEFAULT_HEARTBEAT, DEFAULT_SNAPSHOT_COUNT, DiskReserve, FIRST_NODE_ID, MasterAddress, Objects,
    ProposeOptions,
};
use proto_env::{CancellationToken, Env, TlsNetwork};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use storage::TxnOutcome;

use crate::run::say;
use crate::store::{say_store, transaction};
use crate::value::KEYS;
use crate::{Life, lazy};

/// Number of concurrent writers; each has keys of its own.
const WRITERS: u64 = 16;
/// Size at which the log is purged, in bytes.
const LOG_BYTES: u64 = 512 * 1024;
const LEAD_WITHIN: Duration = Duration::from_secs(20);

/// Writes until the power is cut.
pub fn live(life: &Life) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(write(life))
}

async fn write(life: &Life) -> Result<()> {
    let mut env = Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new());
    env.disk = lazy::disk(life.without);
    let consensus = start(life, env).await?;
    // With a quorum of one, what is read after a start is committed: it must not vanish again.
    say_store(consensus.store(), 0)?;
    let versions = Arc::new(AtomicU64::new(life.from));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (consensus, versions) = (consensus.clone(), versions.clone());
        let mut random = StdRng::seed_from_u64(life.seed ^ writer << 32);
        writers.spawn(async move {
            loop {
                let key = random.random_range(0..KEYS / WRITERS) * WRITERS + writer;
                let version = versions.fetch_add(1, Ordering::Relaxed);
                say(format_args!("started {key} {version}"));
                let proposed = consensus.propose(transaction(key, version), ProposeOptions::default());
                match proposed.await {
                    Ok(TxnOutcome::Committed { .. }) => say(format_args!("acknowledged {key} {version}")),
                    Ok(other) => bail!("a write came to {other:?}"),
                    Err(error) => bail!("a write failed: {error}"),
                }
            }
        });
    }
    tokio::select! {
        biased;
        reason = consensus.failed() => bail!("the master has failed: {reason}"),
        Some(ended) = writers.join_next() => ended?,
    }
}

async fn start(life: &Life, env: Env) -> Result<Arc<Consensus>> {
    let address = MasterAddress {
        name: "lone".to_owned(),
        peer_address: "127.0.0.1:6444".to_owned(),
        api_address: "127.0.0.1:6443".to_owned(),
        replaces: 0,
    };
    let config = ConsensusConfig {
        node_id: FIRST_NODE_ID,
        cluster_id: "power".to_owned(),
        address,
        data_dir: life.directory.clone(),
        data_key: [7; 32],
        heartbeat: DEFAULT_HEARTBEAT,
        election_min: DEFAULT_ELECTION_MIN,
        election_max: DEFAULT_ELECTION_MAX,
        log_bytes: LOG_BYTES,
        snapshot_count: DEFAULT_SNAPSHOT_COUNT,
        objects: Objects::Sled,
        started_before: false,
        disk_reserve: DiskReserve::default(),
        autopilot: AutopilotConfig::default(),
        peers: Vec::new(),
    };
    let consensus = Consensus::start(config, env).await?;
    consensus.initialize().await?;
    let mut leadership = consensus.leadership();
    let leading = tokio::time::timeout(LEAD_WITHIN, leadership.wait_for(|now| now.leading)).await;
    ensure!(leading.context("it does not lead")?.is_ok(), "its leadership is not told any more");
    Ok(consensus)
}
