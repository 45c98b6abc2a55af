//! The openraft adapter: makes a replicated store out of `storage` and a peer network. `master/apiserver`
//! proposes and reads through [`Consensus`], `master/node` starts it and serves its gRPC service on the
//! peer port.

mod alarms;
mod autopilot;
mod compare;
mod config;
mod consensus;
mod defence;
mod detector;
mod discovery;
mod disk_space;
mod disk_stall;
mod elections;
mod fence;
mod forward;
mod handover;
mod inspect;
mod leadership;
mod log_store;
mod membership;
mod membership_requests;
mod network;
mod plan;
mod preference;
mod propose;
mod proposer;
mod raft_types;
mod read;
mod rebuild;
pub mod recovery;
mod restore;
mod service;
mod state_machine;
mod status;
mod sync_delay;
pub mod testing;
#[cfg(test)]
mod tests;
mod types;

pub use alarms::{Alarm, AlarmKind};
pub use autopilot::{AutopilotAction, AutopilotConfig, MemberHealth};
pub use config::{
    ConsensusConfig, DEFAULT_ELECTION_MAX, DEFAULT_ELECTION_MIN, DEFAULT_HEARTBEAT, DEFAULT_LOG_BYTES,
    DEFAULT_SNAPSHOT_COUNT, MIN_SNAPSHOT_COUNT, MemberIdentity, Objects,
};
pub use consensus::{Consensus, FIRST_NODE_ID};
pub use disk_space::DiskReserve;
pub use fence::Fences;
pub use inspect::{LogRecord, VoteSeen};
pub use raft_types::MasterAddress;
pub use restore::{BackupView, Restore, RestoreTarget, Restored};
pub use service::{MastersOnly, RaftService};
pub use status::{DigestError, Status};
pub use types::{ChangeError, Leadership, Member, NodeId, ProposeError, ProposeOptions, ReadError};

/// Why a member cannot start or has failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration or the data directory is invalid.
    #[error("{0}")]
    Config(String),
    /// The log or the object store failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The data on disk is not what was written.
    #[error(
        "{error}: the data in {data_dir} cannot be trusted; remove it and join again (a single master: restore a backup)"
    )]
    Damaged {
        /// The damage found.
        error: String,
        /// The data directory.
        data_dir: String,
    },
    /// openraft failed.
    #[error("consensus: {0}")]
    Raft(String),
}
