//! Errors of this crate. Their texts appear in `FailedMount` events, so they are worded like kubelet's.

use std::path::PathBuf;

/// Reasons why a volume could not be set up, refreshed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A required API object does not exist.
    #[error("{kind} \"{name}\" not found")]
    ObjectNotFound {
        /// Kind of the object: `configmap` or `secret`.
        kind: &'static str,
        /// Name of the object in the pod's namespace.
        name: String,
    },
    /// An `items` entry names a key the object does not have.
    #[error("references non-existent {kind} key: {key}")]
    KeyNotFound {
        /// Kind of the object: `config` or `secret`.
        kind: &'static str,
        /// The missing key.
        key: String,
    },
    /// The API server could not be asked for an object.
    #[error("failed to fetch {kind} \"{namespace}/{name}\": {message}")]
    Fetch {
        /// Kind of the object.
        kind: &'static str,
        /// Namespace of the object.
        namespace: String,
        /// Name of the object.
        name: String,
        /// Error of the API client.
        message: String,
    },
    /// A field of the specification cannot be honoured.
    #[error("{0}")]
    Invalid(String),
    /// A file operation failed.
    #[error("{operation} {path}: {source}", path = path.display())]
    Io {
        /// Action that failed.
        operation: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A pod's directory still contains mounts, so it is not removed.
    #[error("{count} mounts are left below {path}", path = path.display())]
    StillMounted {
        /// Path of the pod's directory.
        path: PathBuf,
        /// Number of mounts left.
        count: usize,
    },
}

impl Error {
    /// Builds an I/O error with the action that failed and its path.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<std::io::Error>) -> Self {
        Self::Io { operation, path: path.into(), source: source.into() }
    }
}
