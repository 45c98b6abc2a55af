//! The agent's errors.

use std::path::PathBuf;

/// Errors of the agent. Their texts appear in events and container states, so they are worded like kubelet's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime answered with an error, or could not be reached.
    #[error("rpc error: code = {} desc = {}", go_code(.status.code()), .status.message())]
    Cri {
        /// Name of the CRI method.
        method: &'static str,
        /// gRPC status of the answer.
        status: Box<tonic::Status>,
    },
    /// The runtime did not answer before the deadline.
    #[error("rpc error: code = DeadlineExceeded desc = context deadline exceeded")]
    CriDeadline {
        /// Name of the CRI method.
        method: &'static str,
        /// Length of the deadline in seconds.
        seconds: u64,
    },
    /// The runtime's socket cannot be used.
    #[error("container runtime at {path}: {message}", path = path.display())]
    Runtime {
        /// Path of the socket.
        path: PathBuf,
        /// Cause of the failure.
        message: String,
    },
    /// The API server refused a request or could not be reached.
    #[error(transparent)]
    Api(#[from] Box<kube::Error>),
    /// A volume could not be set up.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {source}")]
    Volume {
        /// Name of the volume in the pod.
        volume: String,
        /// Cause of the failure.
        source: worker_volumes::Error,
    },
    /// A file could not be used.
    #[error("{operation} {path}: {source}", path = path.display())]
    Io {
        /// Action that failed.
        operation: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The HTTPS server cannot listen or its TLS files are wrong.
    #[error("{0}")]
    Server(String),
    /// A part of the agent that cannot be restarted alone has panicked.
    #[error("a part of the agent failed: {0}")]
    Panicked(String),
    /// A field of the pod cannot be honoured.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Builds an I/O error with the action that failed and its path.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { operation, path: path.into(), source }
    }

    /// Returns the runtime's message without its gRPC code: the message of a container's state.
    pub fn message(&self) -> String {
        match self {
            Self::Cri { status, .. } => status.message().to_owned(),
            Self::CriDeadline { .. } => "context deadline exceeded".to_owned(),
            other => other.to_string(),
        }
    }

    /// Returns whether the runtime reports that the requested object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Cri { status, .. } if status.code() == tonic::Code::NotFound
            || status.message().contains("not found") || status.message().contains("does not exist"))
    }
}

/// Formats a gRPC code as Go does.
fn go_code(code: tonic::Code) -> String {
    match code {
        tonic::Code::Ok => "OK".to_owned(),
        tonic::Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}
