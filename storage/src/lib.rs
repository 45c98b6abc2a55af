//! The multi-version store that every master replicates, with its watches, snapshots and files, and the log
//! of the consensus. It handles bytes and revisions and knows neither Raft nor Kubernetes. `consensus`
//! applies committed commands and keeps its log here; `master/apiserver` reads and watches.

pub mod backend;
pub mod codec;
mod crypto;
mod durable;
mod fingerprint;
pub mod log;
mod object;
mod recent_outcomes;
mod restore;
mod snapshot;
mod store;
mod txn;
mod watch;

pub use crypto::{DataKey, Sealer};
pub use durable::durable;
pub use fingerprint::{Checkpoint, Fingerprint};
pub use object::Object;
pub use restore::{Checked, FrameReader, Restoring};
pub use snapshot::{SnapshotView, Staged, Staging};
pub use store::{Applied, Compacted, Digest, Entry, Limits, NotReached, Page, Rewritten, Sizes, Store};
pub use txn::{Command, Mutation, Precondition, ProposalId, Txn, TxnOutcome};
pub use watch::{Watch, WatchClosed, WatchEvent, WatchItem};

/// A revision: the replicated, strictly increasing number given to every object change. It is the
/// `resourceVersion` of the object and of lists.
pub type Revision = u64;

/// Errors of the store and its files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk or file system failed. The node must stop, because data believed to be durable may not be.
    #[error("{doing}: {source}")]
    Io {
        /// The operation that failed.
        doing: &'static str,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// sled failed or found its files damaged.
    #[error("object store: {0}")]
    Sled(#[from] sled::Error),
    /// Bytes on disk or from a peer cannot be decoded or authenticated.
    #[error("damaged {what}: {reason}")]
    Damaged {
        /// The kind of record.
        what: &'static str,
        /// Description of the damage.
        reason: String,
    },
    /// A record is larger than the format allows.
    #[error("{what} is too large")]
    TooLarge {
        /// The kind of record.
        what: &'static str,
    },
}

impl Error {
    /// Returns whether the error means damaged data, not a failing disk.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Sled(error) => {
                matches!(error, sled::Error::Corruption { .. } | sled::Error::Unsupported(_))
            }
            Self::Io { .. } | Self::TooLarge { .. } => false,
        }
    }
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io { doing, source }
}
