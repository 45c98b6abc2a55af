//! Backup and restore: one file that holds everything a restore on fresh hosts
//! needs. `ephor backup` calls, and the leader carries out the schedule.
//!
//! A bundle is a tar archive, compressed with zstd, encrypted with a passphrase
//! in the age format: `age -d FILE | zstd -d | tar x` opens one without Ephor.
//! Its entries, in this order: `head.json` (of which state it is),
//! `settings.json`, the keys as they lie in `DATA/pki`, the frames of a snapshot
//! of the object store, and `manifest.json`, which counts and sums up the rest.
//!
//! | file | does |
//! | --- | --- |
//! | `manifest.rs` | what a bundle says of itself |
//! | `stream.rs` | makes the entries on a master, as fast as they are taken |
//! | `bundle.rs` | writes entries into a bundle, reads and checks them |
//! | `place.rs`, `s3.rs` | where bundles lie |
//! | `restore.rs` | makes a data directory out of one |
//! | `schedule.rs` | backups at intervals, by the leader |

mod bundle;
mod manifest;
pub mod place;
mod restore;
mod s3;
pub mod schedule;
mod stream;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use zeroize::Zeroizing;

pub use bundle::{verify, write};
pub use manifest::{Head, Manifest};
pub use place::{Place, PlaceOptions};
pub use restore::{RestoreOptions, restore, unfinished};
pub use stream::Source;

use crate::{identity, pki};

/// One file of a bundle.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its path in the archive.
    pub name: String,
    /// Its content.
    pub data: Bytes,
}

/// What a bundle is locked with.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

/// Why a backup or a restore does not happen; each text is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another passphrase, or a damaged header: the two cannot be told apart.
    #[error("the passphrase does not open this bundle (or its first lines are damaged)")]
    Passphrase,
    /// The passphrase is too short to keep anybody out.
    #[error("the passphrase has fewer than {min} characters", min = Passphrase::MIN_CHARACTERS)]
    WeakPassphrase,
    /// Not what was written.
    #[error("the bundle is damaged: {0}")]
    Damaged(String),
    /// From a later version.
    #[error("the bundle is of format {0}, and this ephor reads up to {max}: use a newer one", max = manifest::FORMAT)]
    Version(u32),
    /// Something else entirely.
    #[error("this is no backup bundle: {0}")]
    NotABundle(String),
    /// A file or an object cannot be read or written.
    #[error("{place}: {reason}")]
    Place {
        /// Which.
        place: String,
        /// Why not.
        reason: String,
    },
    /// It would do harm.
    #[error("{0}")]
    Refused(String),
    /// The master that the state comes from.
    #[error("{0}")]
    Source(String),
    /// The replicated store.
    #[error("store: {0}")]
    Consensus(#[from] consensus::Error),
    /// Keys.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// The files of the new master.
    #[error(transparent)]
    Identity(#[from] identity::Error),
}

impl Passphrase {
    /// Fewer are refused for new bundles.
    pub const MIN_CHARACTERS: usize = 12;

    /// A passphrase for a bundle that exists.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// A passphrase for new bundles.
    ///
    /// # Errors
    /// Where it is too short.
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
    Error::Place { place: place.to_string(), reason: error.to_string() }
}
