//! The first process of a PID namespace that a pod's containers share, like the pause container of other
//! runtimes. It reaps orphans and keeps the namespace alive.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::sync::oneshot;

use super::ShimError;
use super::reaper::Reaper;
use crate::files;
use crate::paths::sandbox_file;

/// Creates a PID namespace, starts its first process and records that process's id.
pub(crate) fn hold(directory: &Path) -> Result<(), ShimError> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(ShimError::io("make a PID namespace"))?;
    let mut command = Command::new("/proc/self/exe");
    // The directory argument lets a cleanup find the process if its shim is gone.
    command.arg0("pause").args(["shim", "init"]).arg(directory).env_clear().current_dir("/");
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(ShimError::io("start pause"))?;
    files::write_json(&directory.join(sandbox_file::PID_HOLDER), &child.id())
        .map_err(ShimError::io("record pause"))
}

/// Runs as the first process: reaps children until SIGTERM or SIGINT.
pub(crate) fn init() -> Result<(), ShimError> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    signals.thread_block().map_err(ShimError::io("block signals"))?;
    loop {
        match signals.wait().map_err(ShimError::io("wait for a signal"))? {
            Signal::SIGCHLD => {
                while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                    if status == WaitStatus::StillAlive {
                        break;
                    }
                }
            }
            _ => return Ok(()),
        }
    }
}

/// The daemon's handle on the namespace's first process.
pub(crate) struct Holder {
    pid: i32,
    exit: oneshot::Receiver<i32>,
}

/// Starts the holder; the namespace exists on return.
pub(crate) async fn start(reaper: &Reaper, directory: &Path) -> Result<Holder, ShimError> {
    let mark = reaper.mark();
    let mut command = Command::new("/proc/self/exe");
    command.arg0("ephor").args(["shim", "hold"]).arg(directory).env_clear().current_dir("/");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(ShimError::io("start the holder"))?;
    let launcher = i32::try_from(child.id()).unwrap_or(-1);
    // The exit code is ignored: the record tells whether the holder was started.
    let _ = reaper.wait(launcher, mark).await;
    let pid: i32 = files::read_json(&directory.join(sandbox_file::PID_HOLDER))
        .map_err(ShimError::io("read the holder's process"))?
        .ok_or_else(|| ShimError::Container("the PID namespace could not be made".into()))?;
    Ok(Holder { pid, exit: reaper.wait(pid, mark) })
}

impl Holder {
    /// Kills the first process, and with it every process in the namespace.
    pub async fn end(self) {
        // Fails only if the process is gone already.
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        let _ = self.exit.await;
    }
}
