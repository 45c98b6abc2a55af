//! The node's process: found through its pid file, killed, paused, continued, and started again with the
//! configured command. Called by `node`.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Maximum time until a killed process is gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// How the node's process is found and started.
#[derive(Debug, Clone)]
pub struct Supervised {
    /// File with its pid and, after a space, field 22 of /proc/PID/stat (its start time), so that a reused
    /// pid is never mistaken for it. If the file has only the pid, the pid is trusted.
    pub pid_file: PathBuf,
    /// Program and arguments that start the process: in a process group of its own, with the agent's
    /// environment and directory.
    pub command: Vec<String>,
    /// File for the process's output; with `None` the output is discarded.
    pub log_file: Option<PathBuf>,
}

impl Supervised {
    /// Returns the pid of the process; `None` if it does not run.
    pub fn running(&self) -> Option<u32> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        let mut words = text.split_whitespace();
        let pid = words.next()?.parse().ok()?;
        let started = start_time(pid)?;
        match words.next() {
            Some(known) => (known.parse() == Ok(started)).then_some(pid),
            None => Some(pid),
        }
    }

    /// Sends a signal to the process; returns false if it does not run.
    ///
    /// # Errors
    /// Fails with the kernel's error.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(pid) = self.running() else { return Ok(false) };
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Kills the process with SIGKILL and waits until it is gone; returns false if it did not run.
    ///
    /// # Errors
    /// Fails with the kernel's error, or if the process is not gone in time.
    pub fn kill(&self) -> io::Result<bool> {
        let ran = self.signal(Signal::SIGKILL)?;
        let end = Instant::now() + GONE_WITHIN;
        while self.running().is_some() {
            if Instant::now() >= end {
                return Err(io::Error::other("the process does not end, not even killed"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(ran)
    }

    /// Starts the process with the additional arguments `more`, unless it runs.
    ///
    /// # Errors
    /// Fails with the system's error.
    pub fn start(&self, more: &[String]) -> io::Result<()> {
        if self.running().is_some() {
            return Ok(());
        }
        let Some((program, arguments)) = self.command.split_first() else {
            return Err(io::Error::other("the agent was not told how the node is started"));
        };
        let mut command = Command::new(program);
        command.args(arguments).args(more).stdin(Stdio::null()).process_group(0);
        if let Some(path) = &self.log_file {
            let log = OpenOptions::new().create(true).append(true).open(path)?;
            command.stdout(log.try_clone()?).stderr(log);
        } else {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        let mut child = command.spawn().map_err(|e| io::Error::new(e.kind(), format!("{program}: {e}")))?;
        let pid = child.id();
        let started = start_time(pid).ok_or_else(|| io::Error::other(format!("{program} ended at once")))?;
        fs::write(&self.pid_file, format!("{pid} {started}"))?;
        // A thread waits for the child, so that it leaves no zombie when it ends.
        std::thread::spawn(move || child.wait());
        Ok(())
    }
}

/// Returns field 22 of /proc/PID/stat; `None` if no process has this pid, or only a zombie.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = after_name.split(' ').collect();
    if *fields.first()? == "Z" {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(directory: &std::path::Path) -> Supervised {
        let command = ["sleep", "600"].map(str::to_owned).to_vec();
        Supervised { pid_file: directory.join("pid"), command, log_file: None }
    }

    #[test]
    fn it_is_started_killed_and_started_again() {
        let directory = tempfile::tempdir().unwrap();
        let node = sleeper(directory.path());
        assert!(!node.kill().unwrap());
        node.start(&[]).unwrap();
        let first = node.running().unwrap();
        node.start(&[]).unwrap();
        assert_eq!(node.running(), Some(first));
        assert!(node.kill().unwrap());
        assert_eq!(node.running(), None);
        node.start(&[]).unwrap();
        assert_ne!(node.running().unwrap(), first);
        assert!(node.kill().unwrap());
    }

    #[test]
    fn another_process_with_its_pid_is_not_taken_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let node = sleeper(directory.path());
        fs::write(&node.pid_file, format!("{} 1", std::process::id())).unwrap();
        assert_eq!(node.running(), None);
    }
}
