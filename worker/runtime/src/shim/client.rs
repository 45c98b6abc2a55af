//! The runtime's side of a shim's socket.

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
use super::protocol::{Ended, Reply, Request, read_message, write_message};
use crate::files;
use crate::paths::{sandbox_file, short_path};

/// For requests that a healthy shim answers at once, if the machine lets it run.
const PROMPT: Duration = Duration::from_secs(10);
/// For starting a container on a machine under load: less than the agent waits for the runtime, which must know by
/// then that the start is not answered.
const START: Duration = Duration::from_secs(60);
/// For the end of a pod: containers drain their output first.
const SHUTDOWN: Duration = Duration::from_secs(20);

/// Why a shim did not do as asked.
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
    /// Whether nothing listens.
    fn is_gone(&self) -> bool {
        matches!(self, Self::Unreachable(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
    }
}

/// A pod's shim, known by the pod's state directory.
#[derive(Clone, Debug)]
pub(crate) struct ShimClient {
    directory: PathBuf,
}

impl ShimClient {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Starts the shim; its socket listens when this returns.
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

    /// Whether the shim's process lives, however slow it is.
    pub fn is_alive(&self) -> bool {
        daemon::process(&self.directory).is_some()
    }

    /// Whether `error` means that the shim is no more; one that is only slow must be waited for.
    pub fn has_gone(&self, error: &ShimClientError) -> bool {
        error.is_gone() && !self.is_alive()
    }

    /// Kills the shim's process, for a shim that does not answer.
    pub fn kill(&self) {
        if let Some(pid) = daemon::process(&self.directory) {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Refuses a shim that speaks another protocol than this program.
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

    /// Sends a request and returns the reply with the connection it came over.
    async fn ask(&self, request: &Request, within: Duration) -> Result<(Reply, UnixStream), ShimClientError> {
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

    /// Starts the container whose bundle is `bundle`; one that runs already stays as it is.
    pub async fn start(&self, bundle: &Path) -> Result<StartedRecord, ShimClientError> {
        match self.ask(&Request::Start { bundle: bundle.to_owned() }, START).await? {
            (Reply::Started(started), _) => Ok(started),
            _ => Err(ShimClientError::Refused("unexpected reply".into())),
        }
    }

    /// Sends a signal to a container's first process, or to all.
    pub async fn signal(&self, container: &str, signal: i32, all: bool) -> Result<(), ShimClientError> {
        let request = Request::Signal { container: container.to_owned(), signal, all };
        self.ask(&request, PROMPT).await.map(drop)
    }

    /// Has a container's log opened again.
    pub async fn reopen_log(&self, container: &str) -> Result<(), ShimClientError> {
        self.ask(&Request::ReopenLog { container: container.to_owned() }, PROMPT).await.map(drop)
    }

    /// Runs a process; frames follow on the stream.
    pub async fn exec(
        &self,
        container: &str,
        arguments: &[String],
        tty: bool,
        stdin: bool,
    ) -> Result<UnixStream, ShimClientError> {
        let request =
            Request::Exec { container: container.to_owned(), arguments: arguments.to_vec(), tty, stdin };
        self.ask(&request, START).await.map(|(_, stream)| stream)
    }

    /// Joins a container's streams; frames follow on the stream.
    pub async fn attach(
        &self,
        container: &str,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> Result<UnixStream, ShimClientError> {
        let request = Request::Attach { container: container.to_owned(), stdin, stdout, stderr };
        self.ask(&request, PROMPT).await.map(|(_, stream)| stream)
    }

    /// Starts to listen for ends of containers.
    pub async fn watch(&self) -> Result<Watch, ShimClientError> {
        self.ask(&Request::Watch, PROMPT).await.map(|(_, stream)| Watch(stream))
    }

    /// Kills what is left of the pod and ends the shim.
    pub async fn shutdown(&self) -> Result<(), ShimClientError> {
        self.ask(&Request::Shutdown, SHUTDOWN).await.map(drop)
    }
}

/// Ends of containers, as they happen.
pub(crate) struct Watch(UnixStream);

impl Watch {
    /// Waits for the next end of a container. An error means that the shim is gone.
    pub async fn next(&mut self) -> io::Result<Ended> {
        read_message(&mut self.0).await
    }
}
