//! Supervision of long-running tasks, in masters and workers alike: a panic never ends a part of a process
//! silently. Every panic is counted for the metrics ([`TASK_PANICS`]) and logged as an error; then the task
//! is restarted with a growing pause ([`supervise`]), or its caller gets a [`Panicked`] to end the process
//! with ([`catch`]). Used for every task that is to live as long as its process or its term.
//!
//! The panic is caught where the future is polled, not in a task of its own, so dropping a supervised
//! future drops what it runs, and in the simulation nothing depends on how tasks are scheduled.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;

use crate::counters::TASK_PANICS;

/// Pause before the first restart; doubles with every further panic up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause before a restart.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A task that has run for this long without a panic is healthy again: its next restart waits [`PAUSE_MIN`].
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// A task or call that panicked. The panic has been counted and logged already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{task} panicked: {message}")]
pub struct Panicked {
    /// The name of the task in the metric.
    pub task: &'static str,
    /// The panic's message.
    pub message: String,
}

/// Runs `make()` until it returns; after a panic it makes and runs another future, at first after 100 ms,
/// then after twice the previous pause, at most 10 s. Everything that `make` hands out must be usable after
/// a panic: a lock that may be poisoned is entered with `PoisonError::into_inner`.
pub async fn supervise<T, F>(task: &'static str, mut make: impl FnMut() -> F) -> T
where
    F: Future<Output = T>,
{
    let mut pause = PAUSE_MIN;
    loop {
        let started = Instant::now();
        // `make` itself may panic.
        if let Ok(value) = catch(task, async { make().await }).await {
            return value;
        }
        if started.elapsed() >= HEALTHY_AFTER {
            pause = PAUSE_MIN;
        }
        tracing::warn!(task, ?pause, "restarting the task after a pause");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Runs `future`; a panic in it is counted, logged and returned as an error.
///
/// # Errors
/// [`Panicked`] when the future panicked; it is dropped then.
pub async fn catch<T>(task: &'static str, future: impl Future<Output = T>) -> Result<T, Panicked> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|payload| record(task, &*payload))
}

/// Calls `call`; a panic in it is counted, logged and returned as an error. For callbacks such as handlers of
/// changes, whose panic must not end the task that calls them.
///
/// # Errors
/// [`Panicked`] when the call panicked.
pub fn catch_call<T>(task: &'static str, call: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|payload| record(task, &*payload))
}

fn record(task: &'static str, payload: &(dyn Any + Send)) -> Panicked {
    TASK_PANICS.add(task);
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = text.unwrap_or("a panic without a text").to_owned();
    tracing::error!(task, message, "a task has panicked");
    Panicked { task, message }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_counted_and_restarted_with_a_growing_pause() {
        let (attempts, started) = (AtomicU32::new(0), Instant::now());
        let value = supervise("test-restarted", || async {
            tokio::task::yield_now().await;
            let attempt = attempts.fetch_add(1, Ordering::Relaxed);
            assert!(attempt >= 3, "attempt {attempt} fails");
            "done"
        })
        .await;
        assert_eq!(value, "done");
        assert_eq!(TASK_PANICS.get("test-restarted"), 3);
        assert_eq!(started.elapsed(), Duration::from_millis(100 + 200 + 400));
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_is_bounded_and_short_again_after_a_long_healthy_run() {
        let attempts = AtomicU32::new(0);
        let mut starts = Vec::new();
        supervise("test-healthy", || {
            starts.push(Instant::now());
            let attempt = attempts.fetch_add(1, Ordering::Relaxed);
            async move {
                if attempt == 9 {
                    tokio::time::sleep(HEALTHY_AFTER).await;
                }
                assert!(attempt >= 10, "attempt {attempt} fails");
            }
        })
        .await;
        assert_eq!(starts[9] - starts[8], PAUSE_MAX);
        assert_eq!(starts[10] - starts[9], HEALTHY_AFTER + PAUSE_MIN);
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_supervision_drops_the_task() {
        let held = Arc::new(());
        let inner = held.clone();
        let task = supervise("test-dropped", move || {
            let inner = inner.clone();
            async move {
                std::future::pending::<()>().await;
                drop(inner);
            }
        });
        assert!(tokio::time::timeout(Duration::from_secs(1), task).await.is_err());
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn a_caught_panic_says_which_task_and_why() {
        let failed = catch("test-caught", async { panic!("no {}", "way") }).await;
        let expected = Panicked { task: "test-caught", message: "no way".to_owned() };
        assert_eq!(failed, Err::<(), _>(expected));
        assert_eq!(catch_call("test-call", || 1 + 1), Ok(2));
        assert!(catch_call("test-call", || panic!("fixed text")).is_err());
        assert_eq!(TASK_PANICS.get("test-call"), 1);
    }
}
