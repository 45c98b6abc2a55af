//! Runs programs that keep the node's machine busy: loops on every core, or large files written and synced
//! again and again. Each is a process group of its own that ends by itself at the fault's deadline, so an
//! agent that died leaves nothing behind. Called by `node`.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::effect::BusyEffect;

/// Shell script that loops until it is killed.
const COMPUTE: &str = "while :; do :; done";
/// Shell script that writes 64 MiB to `$1` and syncs them, again and again.
const WRITE: &str = "while dd if=/dev/zero of=\"$1\" bs=1M count=64 conv=fsync 2>/dev/null; do :; done";

/// Running programs by the id of their fault.
#[derive(Debug, Clone, Default)]
pub struct Programs(Arc<Mutex<BTreeMap<String, Vec<Child>>>>);

impl Programs {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Child>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the programs of a fault for at most `limit`; returns how many. Their files go to `directory`.
    ///
    /// # Errors
    /// Fails if a program does not start; then none is left running.
    pub fn start(&self, id: &str, kind: BusyEffect, directory: &Path, limit: Duration) -> io::Result<u64> {
        let (script, count) = match kind {
            BusyEffect::Processor => (COMPUTE, std::thread::available_parallelism()?.get()),
            BusyEffect::Disk => (WRITE, 1),
        };
        let file = file(directory, id);
        for _ in 0..count {
            let started = Command::new("timeout")
                .args(["--signal=KILL", &limit.as_secs().max(1).to_string(), "sh", "-c", script, "sh"])
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn();
            match started {
                Ok(child) => self.lock().entry(id.to_owned()).or_default().push(child),
                Err(error) => {
                    self.stop(id, directory)?;
                    return Err(error);
                }
            }
        }
        Ok(count as u64)
    }

    /// Kills the programs of a fault; does nothing if they have ended, or were started by an agent that has
    /// died.
    ///
    /// # Errors
    /// Fails with the kernel's error.
    pub fn stop(&self, id: &str, directory: &Path) -> io::Result<()> {
        let children = self.lock().remove(id).unwrap_or_default();
        for mut child in children {
            let group = i32::try_from(child.id()).map_err(io::Error::other)?;
            // The process was not waited for yet, so its number cannot have been reused.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            child.wait()?;
        }
        match std::fs::remove_file(file(directory, id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn file(directory: &Path, id: &str) -> PathBuf {
    directory.join(format!(".ephor-chaos-{id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_run_until_they_are_stopped_and_leave_no_file() {
        let (directory, programs) = (tempfile::tempdir().unwrap(), Programs::default());
        let limit = Duration::from_secs(60);
        assert!(programs.start("a", BusyEffect::Processor, directory.path(), limit).unwrap() > 0);
        assert_eq!(programs.start("b", BusyEffect::Disk, directory.path(), limit).unwrap(), 1);
        while !file(directory.path(), "b").exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let running = |id: &str| {
            let mut programs = programs.lock();
            programs.get_mut(id).unwrap().iter_mut().all(|child| child.try_wait().unwrap().is_none())
        };
        assert!(running("a") && running("b"));
        programs.stop("a", directory.path()).unwrap();
        programs.stop("b", directory.path()).unwrap();
        programs.stop("b", directory.path()).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
