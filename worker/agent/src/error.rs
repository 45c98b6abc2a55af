//! The agent's errors.

use std::path::PathBuf;

/// Why the agent could not do something; the texts reach events and container states, so they read as kubelet's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime answered with an error, or not at all.
    #[error("rpc error: code = {} desc = {}", go_code(.status.code()), .status.message())]
    Cri {
        /// The CRI method.
        method: &'static str,
        /// gRPC status.
        status: Box<tonic::Status>,
    },
    /// The runtime did not answer in time.
    #[error("rpc error: code = DeadlineExceeded desc = context deadline exceeded")]
    CriDeadline {
        /// The CRI method.
        method: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// The runtime's socket cannot be used.
    #[error("container runtime at {path}: {message}", path = path.display())]
    Runtime {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        message: String,
    },
    /// The API server refused or could not be reached.
    #[error(transparent)]
    Api(#[from] Box<kube::Error>),
    /// A volume could not be made.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {source}")]
    Volume {
        /// Its name in the pod.
        volume: String,
        /// Why.
        source: worker_volumes::Error,
    },
    /// A file could not be used.
    #[error("{operation} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The HTTPS server cannot listen or its TLS files are wrong.
    #[error("{0}")]
    Server(String),
    /// A part of the agent that cannot begin anew alone has panicked.
    #[error("a part of the agent failed: {0}")]
    Panicked(String),
    /// Something in the pod cannot be honoured.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Wraps an I/O error with what was being done.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { operation, path: path.into(), source }
    }

    /// What the runtime said, without the code in front of it: the message of a container's state.
    pub fn message(&self) -> String {
        match self {
            Self::Cri { status, .. } => status.message().to_owned(),
            Self::CriDeadline { .. } => "context deadline exceeded".to_owned(),
            other => other.to_string(),
        }
    }

    /// Whether the runtime says that what was named does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Cri { status, .. } if status.code() == tonic::Code::NotFound
            || status.message().contains("not found") || status.message().contains("does not exist"))
    }
}

/// A gRPC code as Go prints it.
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
