//! The consensus's public types: members, leadership, options and errors.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The id of a master. Ids come from the log and are never used again.
pub type NodeId = u64;

/// A master of the cluster, as this master knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The master's id.
    pub id: NodeId,
    /// The master's name.
    pub name: String,
    /// `HOST:PORT` of its peer port.
    pub peer_address: String,
    /// `HOST:PORT` of its API port.
    pub api_address: String,
    /// Whether the master votes; a learner only replicates.
    pub voter: bool,
    /// Whether the master leads, as far as this master knows.
    pub leader: bool,
    /// The id of the voter that the master joined to replace; 0: none.
    pub replaces: NodeId,
}

/// Who leads, as this master sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The current term.
    pub term: u64,
    /// The id of the term's leader; `None` if no leader is known.
    pub leader: Option<NodeId>,
    /// Whether this master leads and has applied all entries of earlier terms.
    pub leading: bool,
    /// Whether this master is in touch with a quorum, as the leader or through the leader.
    pub quorum: bool,
}

/// Options of a proposed transaction.
#[derive(Debug, Clone, Copy)]
pub struct ProposeOptions {
    /// The term in which the proposing leader-only component was started: the write is refused in later
    /// terms. `None`: it is never refused.
    pub fence: Option<u64>,
    /// How long to try.
    pub deadline: Duration,
}

impl Default for ProposeOptions {
    fn default() -> Self {
        Self { fence: None, deadline: Duration::from_secs(10) }
    }
}

/// Why a proposal has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The write is certainly in no log, so it may be sent again.
    #[error("the write was not accepted: {reason}")]
    NotEntered {
        /// Why the write was not accepted.
        reason: String,
    },
    /// The write may have happened or may still happen, so it must not be sent again without a check.
    #[error("the outcome of the write is not known: {reason}")]
    Unknown {
        /// Why the outcome is not known.
        reason: String,
    },
    /// The masters' disks are nearly full and the write would make the objects grow. The write is in no
    /// log.
    #[error("no space: {reason}")]
    NoRoom {
        /// What the operator can do.
        reason: String,
    },
    /// More writes wait at the leader than it can make soon. The write is in no log and may be sent again a
    /// little later.
    #[error("too many writes: {reason}")]
    Overloaded {
        /// How long waiting writes have waited.
        reason: String,
    },
    /// This master is shutting down; the write is in no log.
    #[error("this master is stopping")]
    Stopped,
}

/// Why a consistent read is not possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader could confirm itself in time.
    #[error("no quorum: {reason}")]
    NoQuorum {
        /// Why no leader was confirmed.
        reason: String,
    },
    /// This master is shutting down.
    #[error("this master is stopping")]
    Stopped,
}

/// Why the group of masters was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The change would not be safe.
    #[error("refused: {0}")]
    Refused(String),
    /// The leader could not be reached, or did not finish the change, in time.
    #[error("the membership was not changed in time: {0}")]
    Failed(String),
}
