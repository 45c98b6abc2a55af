//! The runtime's client of a pod's shim, over the shim's unix socket.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::timeout;

use super::daemon;
use super::plan::{OLDEST_PROTOCOL, PROTOCOL, ShimPlan, StartedRecord};
use super::protocol::{Ended, Reply, ShimRequest, read_message, write_message};
use crate::files;
use crate::paths::{sandbox_file, short_path};

/// Deadline of requests that a healthy shim answers at once, even on a loaded machine.
const PROMPT: Duration = Duration::from_secs(10);
/// Deadline of a container's start on a loaded machine: shorter than the agent's deadline for the runtime,
/// which must notice first that the shim does not answer.
const START: Duration = Duration::from_secs(60);
/// Deadline of a pod's shutdown, during which containers drain their output.
const SHUTDOWN: Duration = Duration::from_secs(20);

/// Why a request to a shim failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimClientError {
    #[error("container is not running")]
    NotRunning,
    #[error("{0}")]
    Refused(String),
    #[error("the pod's shim does not answer")]
    Unreachable(#[source] io::Error),
    #[error("the pod's shim did not answer in time")]
    Timeout,
    #[error("the pod's shim could not be started: {0}")]
    Spawn(String),
    #[error(
        "the pod's shim speaks version {0} of its protocol, and this runtime versions {OLDEST_PROTOCOL} to {PROTOCOL}"
    )]
    Protocol(u32),
}

impl ShimClientError {
    /// Returns whether no process listens on the socket.
    fn is_gone(&self) -> bool {
        matches!(self, Self::Unreachable(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
    }
}

/// Client of a pod's shim, identified by the pod's state directory.
#[derive(Clone, Debug)]
pub(crate) struct ShimClient {
    directory: PathBuf,
}

impl ShimClient {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Starts the shim and returns once its socket listens.
    pub async fn spawn(&self, exe: &Path, plan: &ShimPlan) -> Result<(), ShimClientError> {
        let failed = |e: io::Error| ShimClientError::Spawn(e.to_string());
        files::write_json(&self.directory.join(sandbox_file::SHIM_PLAN), plan).map_err(failed)?;
        let mut command = Command::new(exe);
        command.args(["shim", "spawn"]).arg(&self.directory).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped()).kill_on_drop(true);
        let output =
            timeout(PROMPT, command.output()).await.map_err(|_| ShimClientError::Timeout)?.map_err(failed)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(ShimClientError::Spawn(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        }
    }

    /// Returns whether the shim's process exists, even if it is slow to answer.
    pub fn is_alive(&self) -> bool {
        daemon::process(&self.directory).is_some()
    }

    /// Returns whether `error` means that the shim no longer exists, rather than that it is slow.
    pub fn has_gone(&self, error: &ShimClientError) -> bool {
        error.is_gone() && !self.is_alive()
    }

    /// Kills the shim's process; used if the shim does not answer.
    pub fn kill(&self) {
        if let Some(pid) = daemon::process(&self.directory) {
            // Fails if the shim has ended meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Fails if the shim speaks a protocol version that this program does not support.
    pub fn check_protocol(&self) -> Result<(), ShimClientError> {
        let plan = files::read_json::<ShimPlan>(&self.directory.join(sandbox_file::SHIM_PLAN));
        match plan.ok().flatten().map(|plan| plan.protocol) {
            Some(version) if !(OLDEST_PROTOCOL..=PROTOCOL).contains(&version) => {
                Err(ShimClientError::Protocol(version))
            }
            _ => Ok(()),
        }
    }

    async fn connect(&self) -> Result<UnixStream, ShimClientError> {
        let handle = File::open(&self.directory).map_err(ShimClientError::Unreachable)?;
        let path = short_path(&handle, sandbox_file::SHIM_SOCKET);
        UnixStream::connect(path).await.map_err(ShimClientError::Unreachable)
    }

    /// Sends a request; returns the reply and the connection it came over.
    async fn ask(
        &self,
        request: &ShimRequest,
        within: Duration,
    ) -> Result<(Reply, UnixStream), ShimClientError> {
        let exchange = async {
            let mut stream = self.connect().await?;
            write_message(&mut stream, request).await.map_err(ShimClientError::Unreachable)?;
            let reply = read_message(&mut stream).await.map_err(ShimClientError::Unreachable)?;
            Ok((reply, stream))
        };
        match timeout(within, exchange).await.map_err(|_| ShimClientError::Timeout)?? {
            (Reply::Error(message), _) => Err(ShimClientError::Refused(message)),
            (Reply::NotRunning, _) => Err(ShimClientError::NotRunning),
            good => Ok(good),
        }
    }

    /// Starts the container whose bundle is `bundle`; does not restart a container that runs already.
    pub async fn start(&self, bundle: &Path) -> Result<StartedRecord, ShimClientError> {
        match self.ask(&ShimRequest::Start { bundle: bundle.to_owned() }, START).await? {
            (Reply::Started(started), _) => Ok(started),
            _ => Err(ShimClientError::Refused("unexpected reply".into())),
        }
    }

    /// Sends a signal to a container's first process, or with `all` to all of its processes.
    pub async fn signal(&self, container: &str, signal: i32, all: bool) -> Result<(), ShimClientError> {
        let request = ShimRequest::Signal { container: container.to_owned(), signal, all };
        self.ask(&request, PROMPT).await.map(drop)
    }

    /// Makes the shim reopen a container's log file.
    pub async fn reopen_log(&self, container: &str) -> Result<(), ShimClientError> {
        self.ask(&ShimRequest::ReopenLog { container: container.to_owned() }, PROMPT).await.map(drop)
    }

    /// Runs a process in a container; returns the connection, over which frames follow.
    pub async fn exec(
        &self,
        container: &str,
        arguments: &[String],
        tty: bool,
        stdin: bool,
    ) -> Result<UnixStream, ShimClientError> {
        let request =
            ShimRequest::Exec { container: container.to_owned(), arguments: arguments.to_vec(), tty, stdin };
        self.ask(&request, START).await.map(|(_, stream)| stream)
    }

    /// Attaches to a container's streams; returns the connection, over which frames follow.
    pub async fn attach(
        &self,
        container: &str,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> Result<UnixStream, ShimClientError> {
        let request = ShimRequest::Attach { container: container.to_owned(), stdin, stdout, stderr };
        self.ask(&request, PROMPT).await.map(|(_, stream)| stream)
    }

    /// Subscribes to the ends of containers.
    pub async fn watch(&self) -> Result<ExitWatch, ShimClientError> {
        self.ask(&ShimRequest::Watch, PROMPT).await.map(|(_, stream)| ExitWatch(stream))
    }

    /// Kills the pod's remaining processes and ends the shim.
    pub async fn shutdown(&self) -> Result<(), ShimClientError> {
        self.ask(&ShimRequest::Shutdown, SHUTDOWN).await.map(drop)
    }
}

/// Subscription to the ends of containers.
pub(crate) struct ExitWatch(UnixStream);

impl ExitWatch {
    /// Waits for the next end of a container. An error means that the shim is gone.
    pub async fn next(&mut self) -> io::Result<Ended> {
        read_message(&mut self.0).await
    }
}
