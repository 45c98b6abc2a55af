//! Backup and restore: one file that holds everything needed to restore a cluster
//! on new hosts. Called by `ephor backup`, and by the leader for scheduled backups.
//!
//! A bundle is a tar archive, compressed with zstd, encrypted with a passphrase
//! in the age format: `age -d FILE | zstd -d | tar x` opens a bundle without Ephor.
//! Its entries, in this order: `head.json` (which state it holds),
//! `settings.json`, the keys as in `DATA/pki`, the frames of a snapshot
//! of the object store, and `manifest.json`, with counts and a checksum of the rest.
//!
//! | file | does |
//! | --- | --- |
//! | `manifest.rs` | the head and the manifest of a bundle |
//! | `stream.rs` | makes the entries on a master, as fast as they are received |
//! | `bundle.rs` | writes entries into a bundle, reads and checks them |
//! | `location.rs`, `s3.rs` | where bundles are stored |
//! | `restore.rs` | makes a data directory from a bundle |
//! | `schedule.rs` | backups at intervals, by the leader |

mod bundle;
pub mod location;
mod manifest;
mod restore;
mod s3;
pub mod schedule;
mod stream;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use zeroize::Zeroizing;

pub use bundle::{verify, write};
pub use location::{BundleLocation, LocationOptions};
pub use manifest::{BundleManifest, Head};
pub use restore::{RestoreOptions, restore, unfinished};
pub use stream::BackupSource;

use crate::{identity, pki};

/// A file in a bundle.
#[derive(Debug, Clone)]
pub struct BundleEntry {
    /// Path of the file in the archive.
    pub name: String,
    /// Content of the file.
    pub data: Bytes,
}

/// The passphrase that a bundle is encrypted with.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

/// Why a backup or a restore failed; each text is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The passphrase is wrong or the header is damaged: the two cannot be told apart.
    #[error("the passphrase does not open this bundle (or its first lines are damaged)")]
    Passphrase,
    /// The passphrase is too short to be safe.
    #[error("the passphrase has fewer than {min} characters", min = Passphrase::MIN_CHARACTERS)]
    WeakPassphrase,
    /// The bundle differs from what was written.
    #[error("the bundle is damaged: {0}")]
    Damaged(String),
    /// The bundle was written by a later version.
    #[error("the bundle is of format {0}, and this ephor reads up to {max}: use a newer one", max = manifest::FORMAT)]
    Version(u32),
    /// The file is not a backup bundle.
    #[error("this is no backup bundle: {0}")]
    NotABundle(String),
    /// A file or an object cannot be read or written.
    #[error("{place}: {reason}")]
    Location {
        /// The path or URL.
        place: String,
        /// The reason.
        reason: String,
    },
    /// The request is refused because it cannot be right or would do harm.
    #[error("{0}")]
    Refused(String),
    /// The master that provides the state failed.
    #[error("{0}")]
    Source(String),
    /// The replicated store failed.
    #[error("store: {0}")]
    Consensus(#[from] consensus::Error),
    /// The keys cannot be read or written.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// The identity of the new master cannot be written.
    #[error(transparent)]
    Identity(#[from] identity::Error),
}

impl Passphrase {
    /// Minimum number of characters in the passphrase of a new bundle.
    pub const MIN_CHARACTERS: usize = 12;

    /// A passphrase for opening an existing bundle.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// Checks and wraps the passphrase of a new bundle.
    ///
    /// # Errors
    /// Fails if the passphrase is too short.
    pub fn for_new(text: String) -> Result<Self, Error> {
        let passphrase = Self::new(text);
        if passphrase.0.chars().count() < Self::MIN_CHARACTERS {
            return Err(Error::WeakPassphrase);
        }
        Ok(passphrase)
    }

    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    fn secret(&self) -> age::secrecy::SecretString {
        self.0.as_str().into()
    }
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

fn place_error(place: impl std::fmt::Display, error: impl std::fmt::Display) -> Error {
    Error::Location { place: place.to_string(), reason: error.to_string() }
}
