//! Where work runs that keeps a processor busy for long: encoding and compressing large answers, decoding large
//! bodies. Few threads do it, so that however much of it is asked for, the runtime's threads stay free for what
//! elections, heartbeats and small requests need. Small objects are never handed over: that would cost them more
//! than it saves. The simulation has one thread and does everything in place.

use std::io;
use std::sync::Arc;
use std::thread::available_parallelism;

use proto_env::Blocking;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// From how many bytes on an answer or a body is large: about a millisecond of work.
pub const LARGE_BYTES: usize = 64 * 1024;

/// How many large answers may be on their way at once. Each holds about two frames of
/// `respond/list.rs` while its client reads, so that all together stay below 256 MiB.
const MAX_STREAMS: usize = 512;

/// The pool. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HeavyWork {
    blocking: Blocking,
    threads: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl HeavyWork {
    /// A pool with half of the machine's processors, at least one.
    pub fn new(blocking: Blocking) -> Self {
        let threads = match blocking {
            Blocking::Threads => available_parallelism().map_or(1, |n| (n.get() / 2).max(1)),
            Blocking::Inline => 1,
        };
        let (threads, streams) = (Semaphore::new(threads), Semaphore::new(MAX_STREAMS));
        HeavyWork { blocking, threads: Arc::new(threads), streams: Arc::new(streams) }
    }

    /// Does a piece of work once a thread is free and gives its result.
    ///
    /// # Errors
    ///
    /// Where the work panicked or the runtime is shutting down.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        if self.blocking == Blocking::Inline {
            return Ok(work());
        }
        let permit = Arc::clone(&self.threads).acquire_owned().await.map_err(io::Error::other)?;
        // Within the work: who stops waiting for it does not stop it.
        let run = self.blocking.run(move || {
            let done = work();
            drop(permit);
            done
        });
        run.await
    }

    /// Does a piece of work on `bytes` bytes in place; where that is much, the thread's other tasks move to
    /// another thread first.
    pub fn in_place<T>(&self, bytes: usize, work: impl FnOnce() -> T) -> T {
        let threads =
            || Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
        if bytes >= LARGE_BYTES && self.blocking == Blocking::Threads && threads() {
            return tokio::task::block_in_place(work);
        }
        work()
    }

    /// Room for one more large answer; `None` where too many are on their way.
    pub fn stream(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.streams).try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_runtime_goes_on_while_the_pool_is_busy() {
        let heavy = HeavyWork { threads: Arc::new(Semaphore::new(2)), ..HeavyWork::new(Blocking::Threads) };
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let gate = Arc::new(std::sync::Mutex::new(gate));
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let work: Vec<_> = (0..20)
            .map(|_| {
                let (heavy, gate) = (heavy.clone(), Arc::clone(&gate));
                let (running, most) = (Arc::clone(&running), Arc::clone(&most));
                tokio::spawn(async move {
                    let done = heavy.run(move || {
                        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        let passed = gate.lock().expect("a gate").recv();
                        running.fetch_sub(1, Ordering::SeqCst);
                        passed
                    });
                    done.await
                })
            })
            .collect();
        // All 20 wait for the gate or for a thread, and timers fire all the same.
        tokio::time::timeout(Duration::from_secs(10), tokio::time::sleep(Duration::from_millis(1)))
            .await
            .expect("the runtime is free");
        for _ in 0..20 {
            go.send(()).expect("somebody waits");
        }
        for task in work {
            task.await.expect("joins").expect("runs").expect("passes");
        }
        assert!(most.load(Ordering::SeqCst) <= 2, "{most:?}");
    }

    #[tokio::test]
    async fn in_place_works_on_a_runtime_of_one_thread() {
        let heavy = HeavyWork::new(Blocking::Threads);
        assert_eq!(heavy.in_place(LARGE_BYTES, || 1), 1);
        assert_eq!(HeavyWork::new(Blocking::Inline).run(|| 2).await.expect("runs"), 2);
    }

    #[test]
    fn answers_on_their_way_are_bounded() {
        let heavy = HeavyWork::new(Blocking::Inline);
        let all: Vec<_> = (0..MAX_STREAMS).map(|_| heavy.stream().expect("room")).collect();
        assert!(heavy.stream().is_none());
        drop(all);
        assert!(heavy.stream().is_some());
    }
}
