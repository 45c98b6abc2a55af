//! The first process of a PID namespace that a pod's containers share: what stock nodes
//! have the pause container for. It collects orphans and keeps the namespace alive.

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

/// Makes a PID namespace, starts its first process and writes that one's id down.
pub(crate) fn hold(directory: &Path) -> Result<(), ShimError> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(ShimError::io("make a PID namespace"))?;
    let mut command = Command::new("/proc/self/exe");
    // The directory is for whoever looks for what a lost shim left.
    command.arg0("pause").args(["shim", "init"]).arg(directory).env_clear().current_dir("/");
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(ShimError::io("start pause"))?;
    files::write_json(&directory.join(sandbox_file::PID_HOLDER), &child.id())
        .map_err(ShimError::io("record pause"))
}

/// Is the first process: waits for children until it is told to go.
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

/// The daemon's handle on that process.
pub(crate) struct Holder {
    pid: i32,
    exit: oneshot::Receiver<i32>,
}

/// Starts the holder; its namespace is there when this returns.
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
    // The record says how it went.
    let _ = reaper.wait(launcher, mark).await;
    let pid: i32 = files::read_json(&directory.join(sandbox_file::PID_HOLDER))
        .map_err(ShimError::io("read the holder's process"))?
        .ok_or_else(|| ShimError::Container("the PID namespace could not be made".into()))?;
    Ok(Holder { pid, exit: reaper.wait(pid, mark) })
}

impl Holder {
    /// Ends the namespace and everything in it.
    pub async fn end(self) {
        // A process that is gone already is what is wanted.
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        let _ = self.exit.await;
    }
}
