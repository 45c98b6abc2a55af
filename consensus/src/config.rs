//! How a master's consensus is set up, and who it is across restarts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use proto_env::Disk;
use serde::{Deserialize, Serialize};
use storage::backend::Home;

use crate::Error;
use crate::autopilot::AutopilotConfig;
use crate::detector::Timers;
use crate::disk_space::DiskReserve;
use crate::raft_types::MasterAddress;
use crate::types::NodeId;

pub(crate) const IDENTITY_FILE: &str = "consensus.json";
/// Where the log lies in the data directory, and the objects.
pub(crate) const LOG_DIRECTORY: &str = "log";
pub(crate) const OBJECTS_DIRECTORY: &str = "objects";

/// Everything [`crate::Consensus::start`] needs to know.
///
/// A leader is given up after `election_max` without a heartbeat (its lease);
/// then each master waits a random time between `election_min` and
/// `election_max` before it stands. [`DEFAULT_HEARTBEAT`],
/// [`DEFAULT_ELECTION_MIN`] and [`DEFAULT_ELECTION_MAX`] give a new leader in
/// under half a second.
#[derive(Clone)]
pub struct ConsensusConfig {
    /// This master's id: [`crate::FIRST_NODE_ID`] for the one that initializes,
    /// what [`crate::Consensus::add_master`] gave for others.
    pub node_id: NodeId,
    /// The cluster's id; calls of other clusters are refused.
    pub cluster_id: String,
    /// This master's name and where others reach it.
    pub address: MasterAddress,
    /// Where log (`log/`), objects (`objects/`) and identity lie.
    pub data_dir: PathBuf,
    /// The cluster's data key: encrypts log and objects.
    pub data_key: [u8; 32],
    /// Between heartbeats.
    pub heartbeat: Duration,
    /// Least election timeout.
    pub election_min: Duration,
    /// Greatest election timeout, and the lease of a leader.
    pub election_max: Duration,
    /// Bytes of the log above which a snapshot is taken and the log purged,
    /// however few entries they are.
    pub log_bytes: u64,
    /// Entries between two snapshots, from [`MIN_SNAPSHOT_COUNT`]. A follower that is further behind is sent a
    /// snapshot; half as many stay in the log for those that are not.
    pub snapshot_count: u64,
    /// DiskReserve to be kept free on the disk.
    pub disk_reserve: DiskReserve,
    /// Where the objects are kept.
    pub objects: Objects,
    /// Whether this master has started before: then its log and its objects must
    /// be there.
    pub started_before: bool,
    /// What this master does by itself as a leader.
    pub autopilot: AutopilotConfig,
    /// `HOST:PORT` of peer ports where other masters may be, beside those that the
    /// membership names: for when all came back at other addresses.
    pub peers: Vec<String>,
}

/// Where a master keeps its objects.
#[derive(Clone, Default)]
pub enum Objects {
    /// In sled, in the data directory.
    #[default]
    Sled,
    /// In a home that outlives the master: the simulation.
    In(Arc<dyn Home>),
}

/// Between heartbeats.
pub const DEFAULT_HEARTBEAT: Duration = Duration::from_millis(50);
/// Least election timeout.
pub const DEFAULT_ELECTION_MIN: Duration = Duration::from_millis(100);
/// Greatest election timeout.
pub const DEFAULT_ELECTION_MAX: Duration = Duration::from_millis(250);

/// Bytes of the log above which it is purged early.
pub const DEFAULT_LOG_BYTES: u64 = 256 * 1024 * 1024;

/// Entries between two snapshots.
pub const DEFAULT_SNAPSHOT_COUNT: u64 = 20_000;
/// The least number of them.
pub const MIN_SNAPSHOT_COUNT: u64 = 10;

/// Who a master is: kept in its data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberIdentity {
    /// Its id.
    pub node_id: NodeId,
    /// Its cluster.
    pub cluster_id: String,
}

impl MemberIdentity {
    /// The identity in `data_dir`; `None` when this directory belongs to no
    /// master yet: initialize or join.
    pub fn load(data_dir: &Path, disk: &dyn Disk) -> Result<Option<Self>, Error> {
        let path = data_dir.join(IDENTITY_FILE);
        match disk.read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                Error::Config(format!(
                    "{} is damaged ({error}): remove the data directory and join again",
                    path.display()
                ))
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::Config(format!("{}: {error}", path.display()))),
        }
    }

    /// Checks that a `data_dir` that belongs to this identity is whole. A voter
    /// whose log has gone, which knows neither its vote nor what it has
    /// acknowledged, must not come back under its id.
    pub(crate) fn check(&self, config: &ConsensusConfig, disk: &dyn Disk) -> Result<(), Error> {
        let data_dir = &config.data_dir;
        if !config.started_before && Self::load(data_dir, disk)?.as_ref() != Some(self) {
            return Ok(());
        }
        let objects = matches!(config.objects, Objects::Sled).then_some(OBJECTS_DIRECTORY);
        for directory in [LOG_DIRECTORY].into_iter().chain(objects) {
            if !disk.list(&data_dir.join(directory)).is_ok_and(|names| !names.is_empty()) {
                return Err(Error::Config(format!(
                    "{} has lost its {directory}: remove the data directory and join again",
                    data_dir.display()
                )));
            }
        }
        Ok(())
    }

    /// Checks that `data_dir` belongs to this identity, or makes it so.
    pub(crate) fn claim(&self, data_dir: &Path, disk: &dyn Disk) -> Result<(), Error> {
        let failed = |error: std::io::Error| Error::Config(format!("{}: {error}", data_dir.display()));
        disk.create_dir_all(data_dir).map_err(failed)?;
        match Self::load(data_dir, disk)? {
            Some(found) if found == *self => Ok(()),
            Some(found) => Err(Error::Config(format!(
                "{} belongs to master {} of cluster {}, not to master {} of cluster {}",
                data_dir.display(),
                found.node_id,
                found.cluster_id,
                self.node_id,
                self.cluster_id,
            ))),
            None => {
                let bytes = serde_json::to_vec(self).map_err(|error| Error::Config(error.to_string()))?;
                disk.replace(&data_dir.join(IDENTITY_FILE), &bytes).map_err(failed)
            }
        }
    }
}

impl ConsensusConfig {
    /// The timers of heartbeats and elections.
    pub(crate) fn timers(&self) -> Timers {
        let Self { heartbeat, election_min, election_max, .. } = *self;
        Timers { heartbeat, election_min, election_max }
    }

    /// openraft's own configuration. Its timers bound calls, its lease is that of a vote;
    /// heartbeats and elections are asked for (`elections.rs`).
    pub(crate) fn raft(&self) -> Result<Arc<Config>, Error> {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        if self.heartbeat.is_zero() || self.election_min <= self.heartbeat {
            return Err(Error::Config("the election timeout must be longer than a heartbeat".to_owned()));
        }
        if self.election_max <= self.election_min {
            return Err(Error::Config("the greatest election timeout must be above the least".to_owned()));
        }
        let lease = ms(self.election_max).max(4);
        let config = Config {
            cluster_name: self.cluster_id.clone(),
            enable_elect: false,
            // The bound on the answer to a heartbeat, and on that to a vote.
            heartbeat_interval: lease - 2,
            election_timeout_min: lease - 1,
            election_timeout_max: lease,
            enable_pre_vote: Some(true),
            // A restarted leader stands again like everyone else.
            enable_leader_restore: Some(false),
            max_payload_entries: 512,
            replication_lag_threshold: self.snapshot_count,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_count),
            max_in_snapshot_log_to_keep: self.snapshot_count / 2,
            purge_batch_size: self.snapshot_count / MIN_SNAPSHOT_COUNT,
            install_snapshot_timeout: 15 * 60 * 1000,
            // `network/append.rs` counts on it.
            broadcast_submitted_on_append: Some(true),
            backoff: "50ms 100ms 200ms ..400ms".to_owned(),
            ..Config::default()
        };
        config.validate().map(Arc::new).map_err(|error| Error::Config(error.to_string()))
    }
}
