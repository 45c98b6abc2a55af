//! A small thread pool for work that takes long on a processor: encoding and compressing large answers,
//! decoding large bodies. Its size is bounded, so that however much of this work there is, the runtime's
//! threads stay free for elections, heartbeats and small requests. Small objects are handled in place, since
//! handing them over would cost more than it saves. The simulation has one thread and does everything in
//! place.

use std::io;
use std::sync::Arc;
use std::thread::available_parallelism;

use proto_env::Blocking;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Size from which an answer or a body counts as large, in bytes: about a millisecond of work.
pub const LARGE_BYTES: usize = 64 * 1024;

/// Maximum number of large answers being sent at once. Each holds about two frames of `respond/list.rs` while
/// its client reads, so that all together stay below 256 MiB.
const MAX_STREAMS: usize = 512;

/// The thread pool for heavy work. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HeavyWork {
    blocking: Blocking,
    threads: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl HeavyWork {
    /// Creates a pool with half of the machine's processors as threads, at least one.
    pub fn new(blocking: Blocking) -> Self {
        let threads = match blocking {
            Blocking::Threads => available_parallelism().map_or(1, |n| (n.get() / 2).max(1)),
            Blocking::Inline => 1,
        };
        let (threads, streams) = (Semaphore::new(threads), Semaphore::new(MAX_STREAMS));
        HeavyWork { blocking, threads: Arc::new(threads), streams: Arc::new(streams) }
    }

    /// Runs `work` once a thread is free and returns its result.
    ///
    /// # Errors
    ///
    /// Fails if the work panicked or the runtime is shutting down.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        if self.blocking == Blocking::Inline {
            return Ok(work());
        }
        let permit = Arc::clone(&self.threads).acquire_owned().await.map_err(io::Error::other)?;
        // The permit is released inside the work, which goes on even when the caller stops waiting for it.
        let run = self.blocking.run(move || {
            let done = work();
            drop(permit);
            done
        });
        run.await
    }

    /// Runs `work` on `bytes` bytes on the current thread; where `bytes` is large, the runtime first moves
    /// the thread's other tasks to another thread.
    pub fn in_place<T>(&self, bytes: usize, work: impl FnOnce() -> T) -> T {
        let threads =
            || Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
        if bytes >= LARGE_BYTES && self.blocking == Blocking::Threads && threads() {
            return tokio::task::block_in_place(work);
        }
        work()
    }

    /// Reserves one large answer; `None` where `MAX_STREAMS` are being sent already.
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
        // All 20 tasks wait for the gate or for a thread; timers must fire nevertheless.
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
