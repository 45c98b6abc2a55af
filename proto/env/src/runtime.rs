//! A tokio runtime for the part of a process that must not be delayed by the rest. It has threads of its
//! own, with a higher priority where the system allows it and while the owner wants it. `consensus` runs openraft, its timers and its
//! connections on one, so that lists, encoding, informers and the scheduler on the main runtime cannot
//! delay a heartbeat. The simulation has one thread and runs everything on it.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::unistd::{Pid, gettid};
use tokio::runtime::{EnterGuard, Handle, Runtime};
use tokio::task::{JoinHandle, JoinSet};

use crate::Blocking;

/// A runtime beside the main one, or the main one itself in the simulation. Long computations do not belong
/// on it but on [`PriorityRuntime::main`].
pub struct PriorityRuntime {
    /// The runtime; `None`: everything runs on the main runtime.
    own: Option<Runtime>,
    main: Handle,
    threads: Arc<Mutex<Threads>>,
}

/// The threads of a runtime of its own.
#[derive(Debug)]
struct Threads {
    ids: BTreeSet<Pid>,
    preferred: bool,
}

/// The scheduling priority that a thread was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadPriority {
    /// Runs before every thread without real-time priority (`SCHED_RR`).
    RealTime,
    /// Gets a larger share of the processor than others (a nice value of -10).
    Preferred,
    /// Like other threads: the system did not allow more.
    Normal,
}

impl PriorityRuntime {
    /// Starts a runtime with `workers` threads called `name`; for [`Blocking::Inline`] it is the runtime of
    /// the caller. Must be called on the main runtime.
    ///
    /// # Errors
    /// Fails if threads cannot be created.
    pub fn start(blocking: Blocking, name: &str, workers: usize) -> io::Result<Self> {
        let main = Handle::current();
        let threads = Arc::new(Mutex::new(Threads { ids: BTreeSet::new(), preferred: true }));
        if blocking == Blocking::Inline {
            return Ok(Self { own: None, main, threads });
        }
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(workers).thread_name(name).enable_all();
        // Threads for blocking work get the priority too: one of them replaces a worker that blocks
        // (`Blocking::in_place`).
        let (started, stopped) = (threads.clone(), threads.clone());
        builder.on_thread_start(move || {
            let mut threads = lock(&started);
            let priority = if threads.preferred { raise_thread_priority() } else { ThreadPriority::Normal };
            threads.ids.insert(gettid());
            tracing::debug!(?priority, "a preferred thread has started");
        });
        builder.on_thread_stop(move || {
            lock(&stopped).ids.remove(&gettid());
        });
        Ok(Self { own: Some(builder.build()?), main, threads })
    }

    /// Sets whether the threads of this runtime run before all others, as they do from the start where the
    /// system allows it, or take turns with them.
    pub fn set_preferred(&self, preferred: bool) {
        let mut threads = lock(&self.threads);
        if threads.preferred == preferred {
            return;
        }
        threads.preferred = preferred;
        let (policy, priority) =
            if preferred { (nix::libc::SCHED_RR, 1) } else { (nix::libc::SCHED_OTHER, 0) };
        for thread in &threads.ids {
            // Where the system allows no real-time priority, threads keep their nice value.
            set_scheduler(*thread, policy, priority);
        }
    }

    fn handle(&self) -> &Handle {
        self.own.as_ref().map_or(&self.main, Runtime::handle)
    }

    /// Runs `work` on this runtime.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.handle().spawn(work)
    }

    /// Runs `work` on this runtime and adds it to `tasks`.
    pub fn spawn_in<T: Send + 'static>(
        &self,
        tasks: &mut JoinSet<T>,
        work: impl Future<Output = T> + Send + 'static,
    ) {
        tasks.spawn_on(work, self.handle());
    }

    /// Runs `work` on this runtime and waits for it. Sockets and timers that it makes belong to this
    /// runtime.
    ///
    /// # Errors
    /// Fails if `work` panicked or the runtime has ended.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<T> {
        match &self.own {
            Some(runtime) => runtime.spawn(work).await.map_err(io::Error::other),
            None => Ok(work.await),
        }
    }

    /// Makes this runtime the current one while the guard lives: tasks that a library spawns then run on
    /// this runtime.
    pub fn enter(&self) -> Option<EnterGuard<'_>> {
        self.own.as_ref().map(Runtime::enter)
    }

    /// Returns the main runtime, on which everything else runs.
    pub fn main(&self) -> &Handle {
        &self.main
    }
}

fn lock(threads: &Mutex<Threads>) -> MutexGuard<'_, Threads> {
    threads.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for PriorityRuntime {
    fn drop(&mut self) {
        // A plain drop would wait for blocking work, which async code must not do.
        if let Some(runtime) = self.own.take() {
            runtime.shutdown_background();
        }
    }
}

/// Raises the priority of the calling thread, as far as the system allows this process to. Threads that it
/// starts do not inherit the priority.
///
/// Measured with every core busy in other processes: a sleep of 10 ms ends up to
/// 46 ms late without, 22 ms late with a nice value of -10, and 0.7 ms late under
/// `SCHED_RR` (`ops/docs/decisions/raft-under-load.md`).
pub fn raise_thread_priority() -> ThreadPriority {
    if set_scheduler(gettid(), nix::libc::SCHED_RR, 1) {
        return ThreadPriority::RealTime;
    }
    if set_nice(-10) && set_scheduler(gettid(), nix::libc::SCHED_OTHER, 0) {
        return ThreadPriority::Preferred;
    }
    ThreadPriority::Normal
}

/// Sets a thread's scheduling policy; its children get the default one. Makes the system call
/// itself, because musl's wrapper refuses to.
#[allow(unsafe_code, reason = "the kernel reads one integer, which lives longer than the call")]
fn set_scheduler(thread: Pid, policy: i32, priority: i32) -> bool {
    let policy = policy | nix::libc::SCHED_RESET_ON_FORK;
    let (call, thread) = (nix::libc::SYS_sched_setscheduler, thread.as_raw());
    unsafe { nix::libc::syscall(call, thread, policy, &raw const priority) == 0 }
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
        // Blocks the only thread of the main runtime.
        assert_eq!(receiver.recv().unwrap().as_deref(), Some("preferred"));
        task.await.unwrap();
        assert_eq!(runtime.run(async { thread_name() }).await.unwrap().as_deref(), Some("preferred"));
        // Threads that it starts have normal priority.
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
    async fn threads_are_preferred_only_while_that_is_wanted() {
        let runtime = PriorityRuntime::start(Blocking::Threads, "preferred", 2).unwrap();
        let real_time = async || {
            let stat =
                runtime.run(async { std::fs::read_to_string("/proc/thread-self/stat").unwrap() }).await;
            // The policy is field 41 of proc_pid_stat(5); field 3 comes first after the name.
            let stat = stat.unwrap();
            let policy = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(38).unwrap().to_owned();
            policy == nix::libc::SCHED_RR.to_string()
        };
        // Where the system allows no real-time priority, nothing changes.
        let allowed = real_time().await;
        runtime.set_preferred(false);
        assert!(!real_time().await);
        runtime.set_preferred(true);
        assert_eq!(real_time().await, allowed);
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
