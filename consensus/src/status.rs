//! What this master is at: figures, and the digest of its replica at a revision,
//! which `ephor status` compares across masters.

use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use storage::{Digest, Sizes};

use crate::consensus::Consensus;
use crate::types::NodeId;

/// How this master is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The current term.
    pub term: u64,
    /// The last log index here.
    pub last_log_index: u64,
    /// The last log index applied here.
    pub applied_index: u64,
    /// The last log index purged here.
    pub purged_index: u64,
    /// Bytes of the log on disk.
    pub log_bytes: u64,
    /// The revision reached.
    pub revision: u64,
    /// Objects in the store.
    pub objects: u64,
    /// Of a leader: the last index each other master is known to have.
    pub replicated: Vec<(NodeId, u64)>,
}

/// Why there is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The replica is not there yet.
    #[error(transparent)]
    NotReached(#[from] storage::NotReached),
    /// The replica no longer knows that revision.
    #[error(transparent)]
    Compacted(#[from] storage::Compacted),
    /// The task that reads the objects ended.
    #[error("{0}")]
    Failed(String),
}

impl Consensus {
    /// How this master is doing.
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

    /// How large the local replica is.
    pub async fn sizes(&self) -> std::io::Result<Sizes> {
        let store = self.store.clone();
        self.env.blocking.run(move || store.sizes()).await
    }

    /// Free bytes where the data lies, as last looked at; 0 when not known.
    pub fn free_bytes(&self) -> u64 {
        self.defence.free_bytes.load(Ordering::Relaxed)
    }

    /// The digest of the local replica at `revision` (`None`: where it is now),
    /// once it has reached that, within `wait`.
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
