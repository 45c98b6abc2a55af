//! What is proposed and applied: transactions of preconditions and mutations,
//! and their outcomes. Made by `master/apiserver`, carried by `consensus`,
//! evaluated in `store/apply.rs`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Revision;

/// Tells a resent proposal from a new one.
pub type ProposalId = [u8; 16];

/// Something that must hold at the moment a transaction is applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precondition {
    /// The key does not exist.
    Absent(String),
    /// The key exists.
    Present(String),
    /// The key exists and was last changed at this revision.
    AtRevision {
        /// The key.
        key: String,
        /// Its expected `mod_revision`.
        mod_revision: Revision,
    },
}

/// A change to one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mutation {
    /// Creates or replaces.
    Put {
        /// The key.
        key: String,
        /// The new value.
        value: Bytes,
    },
    /// Removes; a key that does not exist stays so, without an event.
    Delete {
        /// The key.
        key: String,
    },
}

/// All mutations happen, in order and each with a revision of its own, or none:
/// when a precondition fails.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Txn {
    /// All must hold.
    pub preconditions: Vec<Precondition>,
    /// Applied in order.
    pub mutations: Vec<Mutation>,
}

/// What applying a transaction came to; the same on every replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TxnOutcome {
    /// Applied.
    Committed {
        /// One per mutation, also for a delete.
        revisions: Vec<Revision>,
    },
    /// A precondition did not hold; nothing changed.
    Failed {
        /// Its position in the transaction.
        precondition: usize,
        /// `mod_revision` of its key now; `None` when the key does not exist.
        current: Option<Revision>,
        /// The revision of the store when it was evaluated.
        at: Revision,
    },
    /// The transaction's author led in an earlier term; nothing changed.
    Fenced {
        /// The term of the leader that put it into the log.
        term: u64,
    },
}

/// A transaction on its way through the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The same in every resend.
    pub id: ProposalId,
    /// The log index its author had applied when it made the command: outcomes
    /// forgotten since then might be this command's own.
    pub born: u64,
    /// Refuse it in entries of later terms.
    pub fence: Option<u64>,
    /// The transaction.
    pub txn: Txn,
}

// === impl Precondition ===

impl Precondition {
    /// The key it looks at.
    pub fn key(&self) -> &str {
        match self {
            Self::Absent(key) | Self::Present(key) | Self::AtRevision { key, .. } => key,
        }
    }

    /// Whether it holds for a key last changed at `current`.
    pub(crate) fn holds(&self, current: Option<Revision>) -> bool {
        match self {
            Self::Absent(_) => current.is_none(),
            Self::Present(_) => current.is_some(),
            Self::AtRevision { mod_revision, .. } => current == Some(*mod_revision),
        }
    }
}

// === impl Txn ===

impl Txn {
    /// Roughly the bytes it takes in a log entry.
    pub fn size_bytes(&self) -> usize {
        let preconditions: usize = self.preconditions.iter().map(|it| it.key().len() + 16).sum();
        let mutations: usize = self
            .mutations
            .iter()
            .map(|mutation| match mutation {
                Mutation::Put { key, value } => key.len() + value.len() + 16,
                Mutation::Delete { key } => key.len() + 16,
            })
            .sum();
        preconditions + mutations
    }
}
