//! A tokio runtime for the one part of a process that nothing else may delay: it has
//! threads of its own, which the system prefers to others where it lets this process
//! ask for that. `consensus` runs openraft, its timers and its connections on one, so
//! that lists, encoding, informers and the scheduler on the main runtime cannot hold
//! up a heartbeat. The simulation has one thread and runs everything in place.

use std::io;

use tokio::runtime::{EnterGuard, Handle, Runtime};
use tokio::task::{JoinHandle, JoinSet};

use crate::Blocking;

/// A runtime beside the main one, or the main one itself in the simulation. Nothing that
/// computes for long belongs on it: see [`PriorityRuntime::main`].
pub struct PriorityRuntime {
    /// `None`: everything runs on the main runtime.
    own: Option<Runtime>,
    main: Handle,
}

/// How much a thread is preferred to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadPriority {
    /// Before every thread that has not asked for the same (`SCHED_RR`).
    RealTime,
    /// A larger share of the processor than others (a nice value of -10).
    Preferred,
    /// The system did not allow more than others have.
    Normal,
}

impl PriorityRuntime {
    /// A runtime with `workers` threads called `name`; for [`Blocking::Inline`] the
    /// runtime of the caller. Call it on the main runtime.
    ///
    /// # Errors
    /// Where threads cannot be made.
    pub fn start(blocking: Blocking, name: &str, workers: usize) -> io::Result<Self> {
        let main = Handle::current();
        if blocking == Blocking::Inline {
            return Ok(Self { own: None, main });
        }
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(workers).thread_name(name).enable_all();
        // Threads for blocking work too: one takes the place of a worker that blocks (`Blocking::in_place`).
        builder.on_thread_start(|| {
            let priority = raise_thread_priority();
            tracing::debug!(?priority, "a preferred thread has started");
        });
        Ok(Self { own: Some(builder.build()?), main })
    }

    fn handle(&self) -> &Handle {
        self.own.as_ref().map_or(&self.main, Runtime::handle)
    }

    /// Runs `work` on this runtime.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.handle().spawn(work)
    }

    /// Runs `work` on this runtime as one of `tasks`.
    pub fn spawn_in<T: Send + 'static>(
        &self,
        tasks: &mut JoinSet<T>,
        work: impl Future<Output = T> + Send + 'static,
    ) {
        tasks.spawn_on(work, self.handle());
    }

    /// Runs `work` on this runtime and waits for it: sockets and timers made by it
    /// belong to this runtime.
    ///
    /// # Errors
    /// Where it panicked, or the runtime is gone.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<T> {
        match &self.own {
            Some(runtime) => runtime.spawn(work).await.map_err(io::Error::other),
            None => Ok(work.await),
        }
    }

    /// Makes this runtime the current one for what follows in the same function:
    /// tasks that a library spawns there run here.
    pub fn enter(&self) -> Option<EnterGuard<'_>> {
        self.own.as_ref().map(Runtime::enter)
    }

    /// The runtime that everything else runs on.
    pub fn main(&self) -> &Handle {
        &self.main
    }
}

impl Drop for PriorityRuntime {
    fn drop(&mut self) {
        // The plain drop waits for blocking work, which async code must not.
        if let Some(runtime) = self.own.take() {
            runtime.shutdown_background();
        }
    }
}

/// Has the system prefer the calling thread, as far as this process may ask for it.
/// Threads that it starts are not preferred.
///
/// Measured with every core busy in other processes: a sleep of 10 ms ends up to
/// 46 ms late without, 22 ms late with a nice value of -10, and 0.7 ms late under
/// `SCHED_RR` (`ops/docs/decisions/raft-under-load.md`).
pub fn raise_thread_priority() -> ThreadPriority {
    if set_scheduler(nix::libc::SCHED_RR, 1) {
        return ThreadPriority::RealTime;
    }
    if set_nice(-10) && set_scheduler(nix::libc::SCHED_OTHER, 0) {
        return ThreadPriority::Preferred;
    }
    ThreadPriority::Normal
}

/// Sets the calling thread's policy so that its children have the default one. The
/// system call itself: musl's wrapper refuses.
#[allow(unsafe_code, reason = "the kernel reads one integer, which lives longer than the call")]
fn set_scheduler(policy: i32, priority: i32) -> bool {
    let policy = policy | nix::libc::SCHED_RESET_ON_FORK;
    unsafe { nix::libc::syscall(nix::libc::SYS_sched_setscheduler, 0, policy, &raw const priority) == 0 }
}

#[allow(unsafe_code, reason = "the call takes three integers")]
fn set_nice(nice: i32) -> bool {
    let process = nix::libc::PRIO_PROCESS;
    unsafe { nix::libc::syscall(nix::libc::SYS_setpriority, process, 0, nice) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread_name() -> Option<String> {
        std::thread::current().name().map(str::to_owned)
    }

    #[tokio::test]
    async fn work_runs_on_threads_of_its_own_while_the_main_runtime_is_blocked() {
        let runtime = PriorityRuntime::start(Blocking::Threads, "preferred", 2).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let task = runtime.spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            sender.send(thread_name()).unwrap();
        });
        // The only thread of the main runtime waits here without letting go of it.
        assert_eq!(receiver.recv().unwrap().as_deref(), Some("preferred"));
        task.await.unwrap();
        assert_eq!(runtime.run(async { thread_name() }).await.unwrap().as_deref(), Some("preferred"));
        // What a thread of it starts is as everything else.
        let policy = runtime.run(async {
            let started = std::thread::spawn(|| std::fs::read_to_string("/proc/thread-self/stat").unwrap());
            started.join().unwrap()
        });
        let stat = policy.await.unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        // See proc_pid_stat(5): field 3 comes first here, nice is field 19, the policy 41.
        assert_eq!((fields[16], fields[38]), ("0", "0"), "{stat}");
    }

    #[tokio::test]
    async fn inline_everything_runs_in_place() {
        let runtime = PriorityRuntime::start(Blocking::Inline, "preferred", 2).unwrap();
        assert!(runtime.enter().is_none());
        let here = thread_name();
        assert_eq!(runtime.run(async { thread_name() }).await.unwrap(), here);
        assert_eq!(runtime.spawn(async { thread_name() }).await.unwrap(), here);
    }
}
