//! What callers of the consensus see: members, leadership, options and errors.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Names a master for ever: ids come from the log and are never used again.
pub type NodeId = u64;

/// A master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// `HOST:PORT` of its peer port.
    pub peer_address: String,
    /// `HOST:PORT` of its API port.
    pub api_address: String,
    /// Whether it votes; a learner only follows.
    pub voter: bool,
    /// Whether it leads, as far as is known here.
    pub leader: bool,
    /// The voter whose place it was let in to take; 0: none.
    pub replaces: NodeId,
}

/// Who leads, as this master sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The current term.
    pub term: u64,
    /// Who leads it.
    pub leader: Option<NodeId>,
    /// This master leads and has applied everything of earlier terms.
    pub leading: bool,
    /// This master is in touch with a quorum: as leader, or through one.
    pub quorum: bool,
}

/// How a transaction is proposed.
#[derive(Debug, Clone, Copy)]
pub struct ProposeOptions {
    /// The term a leader-only component was started in; the write is refused in
    /// later ones.
    pub fence: Option<u64>,
    /// How long to try.
    pub deadline: Duration,
}

impl Default for ProposeOptions {
    fn default() -> Self {
        Self { fence: None, deadline: Duration::from_secs(10) }
    }
}

/// Why there is no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The write is certainly in no log: it may be sent again.
    #[error("the write was not accepted: {reason}")]
    NotEntered {
        /// Why not.
        reason: String,
    },
    /// The write may happen yet, or have happened: it must not be sent again
    /// blindly.
    #[error("the outcome of the write is not known: {reason}")]
    Unknown {
        /// What came in between.
        reason: String,
    },
    /// The masters' disks are nearly full and the write would make the objects
    /// grow; it is in no log.
    #[error("no space: {reason}")]
    NoRoom {
        /// What to do.
        reason: String,
    },
    /// The leader has more writes waiting than it can make soon; the write is in no
    /// log and may be sent again a little later.
    #[error("too many writes: {reason}")]
    Overloaded {
        /// How long others wait.
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
        /// What was tried.
        reason: String,
    },
    /// This master is shutting down.
    #[error("this master is stopping")]
    Stopped,
}

/// Why the group of masters was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It would not be safe.
    #[error("refused: {0}")]
    Refused(String),
    /// The leader could not be asked, or did not finish, in time.
    #[error("the membership was not changed in time: {0}")]
    Failed(String),
}
