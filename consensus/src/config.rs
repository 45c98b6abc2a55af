//! The configuration of a master's consensus, and the identity it keeps across restarts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use proto_env::Disk;
use proto_env::planted::{self, Bug};
use serde::{Deserialize, Serialize};
use storage::backend::Home;

use crate::Error;
use crate::autopilot::AutopilotConfig;
use crate::detector::Timers;
use crate::disk_space::DiskReserve;
use crate::raft_types::MasterAddress;
use crate::types::NodeId;

pub(crate) const IDENTITY_FILE: &str = "consensus.json";
/// Names of the directories of the log and of the objects within the data directory.
pub(crate) const LOG_DIRECTORY: &str = "log";
pub(crate) const OBJECTS_DIRECTORY: &str = "objects";

/// Everything [`crate::Consensus::start`] needs to know.
///
/// A follower gives up its leader after `election_max` without a heartbeat (the lease), then waits a random
/// time between `election_min` and `election_max` before it stands for election. With
/// [`DEFAULT_HEARTBEAT`], [`DEFAULT_ELECTION_MIN`] and [`DEFAULT_ELECTION_MAX`] a new leader is elected in
/// under half a second.
#[derive(Clone)]
pub struct ConsensusConfig {
    /// This master's id: [`crate::FIRST_NODE_ID`] for the master that initializes the cluster, the result
    /// of [`crate::Consensus::add_master`] for others.
    pub node_id: NodeId,
    /// The cluster's id; calls from other clusters are refused.
    pub cluster_id: String,
    /// This master's name, and the addresses at which others reach it.
    pub address: MasterAddress,
    /// Directory of the log (`log/`), the objects (`objects/`) and the identity.
    pub data_dir: PathBuf,
    /// The cluster's data key: encrypts log and objects.
    pub data_key: [u8; 32],
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// Least election timeout.
    pub election_min: Duration,
    /// Greatest election timeout, and the lease of a leader.
    pub election_max: Duration,
    /// Size of the log in bytes above which a snapshot is taken and the log purged, however few entries
    /// there are.
    pub log_bytes: u64,
    /// Number of entries between two snapshots, at least [`MIN_SNAPSHOT_COUNT`]. Half as many entries stay
    /// in the log; a follower that is further behind is sent a snapshot.
    pub snapshot_count: u64,
    /// Space to keep free on the disk.
    pub disk_reserve: DiskReserve,
    /// Where the objects are stored.
    pub objects: Objects,
    /// Whether this master has started before; then its log and its objects must exist.
    pub started_before: bool,
    /// Settings of the membership changes that this master makes by itself as a leader.
    pub autopilot: AutopilotConfig,
    /// `HOST:PORT` of peer ports to try beside the membership's addresses, for when all masters came back
    /// at other addresses.
    pub peers: Vec<String>,
}

/// Where a master stores its objects.
#[derive(Clone, Default)]
pub enum Objects {
    /// In sled, in the data directory.
    #[default]
    Sled,
    /// In a store that outlives the master, as the simulation needs.
    In(Arc<dyn Home>),
}

/// Time between two heartbeats.
pub const DEFAULT_HEARTBEAT: Duration = Duration::from_millis(50);
/// Least election timeout.
pub const DEFAULT_ELECTION_MIN: Duration = Duration::from_millis(100);
/// Greatest election timeout.
pub const DEFAULT_ELECTION_MAX: Duration = Duration::from_millis(250);

/// Size of the log in bytes above which it is purged early.
pub const DEFAULT_LOG_BYTES: u64 = 256 * 1024 * 1024;

/// Number of entries between two snapshots.
pub const DEFAULT_SNAPSHOT_COUNT: u64 = 20_000;
/// Least allowed number of entries between two snapshots.
pub const MIN_SNAPSHOT_COUNT: u64 = 10;

/// The identity of a master, kept in its data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberIdentity {
    /// The master's id.
    pub node_id: NodeId,
    /// The id of the master's cluster.
    pub cluster_id: String,
}

impl MemberIdentity {
    /// Reads the identity in `data_dir`; `None` if the directory belongs to no master yet, which then has
    /// to initialize a cluster or join one.
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

    /// Checks that a `data_dir` that belongs to this identity is complete. A voter that lost its log knows
    /// neither its vote nor the entries it acknowledged, so it must not come back under its id.
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

    /// Writes this identity to `data_dir`, or checks that the directory already belongs to it.
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
    /// Returns the timers of heartbeats and elections.
    pub(crate) fn timers(&self) -> Timers {
        let Self { heartbeat, election_min, election_max, .. } = *self;
        Timers { heartbeat, election_min, election_max }
    }

    /// Makes openraft's own configuration. Its timers only bound calls, and its lease is that of a vote;
    /// `elections.rs` triggers heartbeats and elections.
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
            // The time limits of the answer to a heartbeat and of the answer to a vote.
            heartbeat_interval: lease - 2,
            election_timeout_min: lease - 1,
            election_timeout_max: lease,
            enable_pre_vote: Some(true),
            // A restarted leader has to be elected again, like every other master.
            enable_leader_restore: Some(false),
            max_payload_entries: 512,
            replication_lag_threshold: self.snapshot_count,
            // Planted: the policy's trigger is dropped.
            snapshot_policy: if planted::is(Bug::SnapshotTriggerDropped) {
                SnapshotPolicy::Never
            } else {
                SnapshotPolicy::LogsSinceLast(self.snapshot_count)
            },
            // Planted: a follower may have lost entries that it had acknowledged.
            allow_log_reversion: planted::is(Bug::LogReversalAllowed).then_some(true),
            max_in_snapshot_log_to_keep: self.snapshot_count / 2,
            purge_batch_size: self.snapshot_count / MIN_SNAPSHOT_COUNT,
            install_snapshot_timeout: 15 * 60 * 1000,
            // `network/append.rs` relies on this.
            broadcast_submitted_on_append: Some(true),
            backoff: "50ms 100ms 200ms ..400ms".to_owned(),
            ..Config::default()
        };
        config.validate().map(Arc::new).map_err(|error| Error::Config(error.to_string()))
    }
}
