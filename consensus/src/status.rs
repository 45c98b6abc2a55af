//! The status of this master: figures, and the digest of its replica at a revision, which `ephor status`
//! compares across masters.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use storage::{Digest, Sizes};

use crate::consensus::Consensus;
use crate::types::NodeId;

/// The figures of this master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The current term.
    pub term: u64,
    /// Index of the last log entry on this master.
    pub last_log_index: u64,
    /// Index of the last log entry applied on this master.
    pub applied_index: u64,
    /// Index of the last log entry purged on this master.
    pub purged_index: u64,
    /// Bytes of the log on disk.
    pub log_bytes: u64,
    /// The revision that the store has reached.
    pub revision: u64,
    /// Number of objects in the store.
    pub objects: u64,
    /// On a leader, the last index that each other master is known to have; otherwise empty.
    pub replicated: Vec<(NodeId, u64)>,
}

/// Why a digest could not be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The replica did not reach the revision in time.
    #[error(transparent)]
    NotReached(#[from] storage::NotReached),
    /// The replica does not remember the revision any more.
    #[error(transparent)]
    Compacted(#[from] storage::Compacted),
    /// The task that reads the objects has ended early.
    #[error("{0}")]
    Failed(String),
}

impl Consensus {
    /// Returns the figures of this master.
    pub fn status(&self) -> Status {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: Option<u64>| id.unwrap_or(0);
        let replicated = metrics.replication.iter().flatten();
        Status {
            term: metrics.current_term,
            last_log_index: index(metrics.last_log_index),
            applied_index: *self.applied_index.borrow(),
            purged_index: index(metrics.purged.map(|id| id.index)),
            log_bytes: self.log.disk_bytes(),
            revision: self.store.revision(),
            objects: self.store.len() as u64,
            replicated: replicated.map(|(id, matched)| (*id, index(matched.map(|m| m.index)))).collect(),
        }
    }

    /// Measures the size of the local replica.
    pub async fn sizes(&self) -> std::io::Result<Sizes> {
        let store = self.store.clone();
        self.env.blocking.run(move || store.sizes()).await
    }

    /// Returns the free bytes on the data directory's disk, as of the last check; 0 if not known.
    pub fn free_bytes(&self) -> u64 {
        self.defence.free_bytes()
    }

    /// Computes the digest of the local replica at `revision` (`None`: the present one); waits up to `wait`
    /// for the replica to reach it.
    pub async fn state_digest(&self, revision: Option<u64>, wait: Duration) -> Result<Digest, DigestError> {
        if let Some(revision) = revision {
            self.store.wait_for(revision, wait).await?;
        }
        let store = self.store.clone();
        self.env
            .blocking
            .run(move || store.digest(revision))
            .await
            .map_err(|error| DigestError::Failed(error.to_string()))?
            .map_err(DigestError::from)
    }
}
