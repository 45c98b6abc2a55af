//! The errors of this crate; their texts end up in `FailedMount` events, so they read as kubelet's do.

use std::path::PathBuf;

/// Why a volume could not be made, refreshed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An API object that is not optional is missing.
    #[error("{kind} \"{name}\" not found")]
    ObjectNotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name in the pod's namespace.
        name: String,
    },
    /// An `items` entry names a key the object does not have.
    #[error("references non-existent {kind} key: {key}")]
    KeyNotFound {
        /// `config` or `secret`.
        kind: &'static str,
        /// The missing key.
        key: String,
    },
    /// The API could not be asked.
    #[error("failed to fetch {kind} \"{namespace}/{name}\": {message}")]
    Fetch {
        /// What was asked for.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What the client said.
        message: String,
    },
    /// A field of the specification cannot be honoured.
    #[error("{0}")]
    Invalid(String),
    /// A file operation failed.
    #[error("{operation} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A pod's directory still holds mounts, so it is not removed.
    #[error("{count} mounts are left below {path}", path = path.display())]
    StillMounted {
        /// The pod's directory.
        path: PathBuf,
        /// How many.
        count: usize,
    },
}

impl Error {
    /// Wraps an I/O error with what was being done.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<std::io::Error>) -> Self {
        Self::Io { operation, path: path.into(), source: source.into() }
    }
}
