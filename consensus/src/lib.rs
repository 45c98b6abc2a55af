//! The openraft adapter: it makes a replicated store out of `storage` and a peer
//! network. `master/apiserver` proposes and reads through [`Consensus`],
//! `master/node` starts it and serves its gRPC service on the peer port.

mod config;
mod consensus;
mod leadership;
mod log_store;
mod membership;
mod network;
mod propose;
mod proposer;
mod raft_types;
mod read;
mod restore;
mod service;
mod state_machine;
mod status;
pub mod testing;
#[cfg(test)]
mod tests;
mod types;

pub use config::{
    ConsensusConfig, DEFAULT_ELECTION_MAX, DEFAULT_ELECTION_MIN, DEFAULT_HEARTBEAT, DEFAULT_LOG_BYTES,
    Identity, Objects,
};
pub use consensus::{Consensus, FIRST_NODE_ID};
pub use raft_types::MasterAddress;
pub use restore::{BackupView, Restore, RestoreTarget, Restored};
pub use service::{MastersOnly, RaftService};
pub use status::{DigestError, Status};
pub use types::{ChangeError, Leadership, Member, NodeId, ProposeError, ProposeOptions, ReadError};

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration or the data directory is not right.
    #[error("{0}")]
    Config(String),
    /// Log or object store failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// openraft failed.
    #[error("consensus: {0}")]
    Raft(String),
}
