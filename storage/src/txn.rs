//! Transactions of preconditions and mutations, and their outcomes. `master/apiserver` makes them,
//! `consensus` carries them, `store/apply.rs` applies them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Revision;

/// The id of a proposal, which tells a resent one from a new one.
pub type ProposalId = [u8; 16];

/// A condition that must hold when a transaction is applied.
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
    /// Creates or replaces the key.
    Put {
        /// The key.
        key: String,
        /// The new value.
        value: Bytes,
    },
    /// Removes the key; if it does not exist, nothing happens and there is no event.
    Delete {
        /// The key.
        key: String,
    },
}

/// A transaction: all mutations are applied, in order and each with a revision of its own, or none if a
/// precondition fails.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Txn {
    /// Conditions that must all hold.
    pub preconditions: Vec<Precondition>,
    /// Changes, applied in order.
    pub mutations: Vec<Mutation>,
}

/// The outcome of applying a transaction; the same on every replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TxnOutcome {
    /// The mutations were applied.
    Committed {
        /// One revision per mutation, also for a delete.
        revisions: Vec<Revision>,
    },
    /// A precondition did not hold; nothing changed.
    Failed {
        /// The position of the failed precondition in the transaction.
        precondition: usize,
        /// The present `mod_revision` of its key; `None` if the key does not exist.
        current: Option<Revision>,
        /// The revision of the store when the transaction was applied.
        at: Revision,
    },
    /// The transaction's author led in an earlier term; nothing changed.
    Fenced {
        /// The term of the leader that put the transaction into the log.
        term: u64,
    },
}

/// A transaction on its way through the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The proposal's id, the same in every resend.
    pub id: ProposalId,
    /// The log index that the author had applied when it made the command. If outcomes since then were
    /// forgotten, this command may have been applied already.
    pub born: u64,
    /// Term after which the command is refused; `None`: never.
    pub fence: Option<u64>,
    /// The transaction.
    pub txn: Txn,
}

// === impl Precondition ===

impl Precondition {
    /// Returns the key that the precondition checks.
    pub fn key(&self) -> &str {
        match self {
            Self::Absent(key) | Self::Present(key) | Self::AtRevision { key, .. } => key,
        }
    }

    /// Returns whether the precondition holds for a key last changed at `current` (`None`: it does not
    /// exist).
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
    /// Returns the approximate bytes of the transaction in a log entry.
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
