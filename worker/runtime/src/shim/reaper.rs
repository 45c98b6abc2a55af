//! Waits for every child of the daemon: launchers, containers, and orphaned processes, which become children
//! of the daemon because it is a subreaper.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use proto_env::supervise::catch;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Maximum number of exit statuses kept until they are asked for.
const UNCLAIMED: usize = 1024;

/// Collects the exit statuses of the daemon's children. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Reaper {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    waiting: BTreeMap<i32, oneshot::Sender<i32>>,
    unclaimed: VecDeque<(u64, i32, i32)>,
    collected: u64,
}

impl Reaper {
    /// Starts collecting, in a task of the current runtime.
    pub fn start() -> io::Result<Self> {
        let reaper = Self::default();
        let mut signals = signal(SignalKind::child())?;
        let collecting = reaper.clone();
        tokio::spawn(async move {
            let collect = async {
                collecting.collect();
                while signals.recv().await.is_some() {
                    collecting.collect();
                }
            };
            // An exit status that is lost would leave its container running for ever.
            if let Err(panic) = catch("shim-reaper", collect).await {
                super::containers::die(&panic);
            }
        });
        Ok(reaper)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a mark of the present moment: [`Reaper::wait`] ignores processes that ended before its mark.
    pub fn mark(&self) -> u64 {
        self.lock().collected
    }

    /// Returns a receiver of the exit code of a child that was started after `mark`.
    pub fn wait(&self, pid: i32, mark: u64) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        let mut inner = self.lock();
        match inner.unclaimed.iter().position(|(at, of, _)| *of == pid && *at >= mark) {
            Some(found) => {
                if let Some((_, _, code)) = inner.unclaimed.remove(found) {
                    // Sending cannot fail, because this function still owns the receiver.
                    let _ = sender.send(code);
                }
            }
            None => {
                inner.waiting.insert(pid, sender);
            }
        }
        receiver
    }

    fn collect(&self) {
        loop {
            let (pid, code) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            let mut inner = self.lock();
            let at = inner.collected;
            inner.collected += 1;
            match inner.waiting.remove(&pid) {
                // Sending fails if the receiver was dropped, which does no harm.
                Some(sender) => drop(sender.send(code)),
                None => {
                    inner.unclaimed.push_back((at, pid, code));
                    if inner.unclaimed.len() > UNCLAIMED {
                        inner.unclaimed.pop_front();
                    }
                }
            }
        }
    }
}
