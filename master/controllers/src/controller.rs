//! Runs a controller: its handlers fill a queue with keys, its workers reconcile them. Called by `lib.rs`;
//! calls each controller's `reconcile`, which gets a key and never learns what changed.

use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use master_client::{HandlerGuard, WorkQueue};
use proto_env::supervise;
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// Deadline of one reconcile, after which it is aborted and retried: a hung request must not hold its key
/// for ever.
const RECONCILE_DEADLINE: Duration = Duration::from_secs(120);

/// When to reconcile a key again after a successful reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reconciled {
    /// Only when something changes.
    Done,
    /// After this long, even if nothing changes.
    After(Duration),
}

/// A level-triggered controller.
#[async_trait]
pub(crate) trait Controller: Send + Sync + 'static {
    /// Identifies a unit of work.
    type Key: Clone + Ord + Debug + Display + Send + Sync + 'static;

    /// Name of the controller in logs.
    fn name(&self) -> &'static str;

    /// Number of keys reconciled concurrently.
    fn workers(&self) -> usize {
        1
    }

    /// Registers the handlers that turn changes into keys. Existing objects arrive first, as additions.
    fn register(self: Arc<Self>, queue: &Arc<WorkQueue<Self::Key>>) -> Vec<HandlerGuard>;

    /// Moves the actual state towards what `key`'s object asks for.
    async fn reconcile(&self, key: &Self::Key) -> Result<Reconciled, Error>;
}

/// Runs one controller until `shutdown`.
pub(crate) async fn run<C: Controller>(controller: Arc<C>, shutdown: CancellationToken) {
    let queue = Arc::new(WorkQueue::new());
    let guards = controller.clone().register(&queue);
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..controller.workers() {
        workers.spawn(work(controller.clone(), queue.clone(), shutdown.clone()));
    }
    while workers.join_next().await.is_some() {}
    drop(guards);
}

async fn work<C: Controller>(controller: Arc<C>, queue: Arc<WorkQueue<C::Key>>, shutdown: CancellationToken) {
    loop {
        let key = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            key = queue.next() => key,
        };
        let attempt = tokio::time::timeout(RECONCILE_DEADLINE, controller.reconcile(&key));
        let result = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            result = supervise::catch(controller.name(), attempt) => result,
        };
        // A panic counts as an error: the key is retried with growing delays, and other keys are not
        // affected.
        let result = match result {
            Ok(in_time) => in_time.unwrap_or(Err(Error::Deadline)),
            Err(panicked) => Err(Error::Panicked(panicked)),
        };
        match result {
            Ok(outcome) => {
                queue.forget(&key);
                if let Reconciled::After(delay) = outcome {
                    queue.add_after(key.clone(), delay);
                }
            }
            Err(error) => {
                if error.is_expected() {
                    tracing::debug!(controller = controller.name(), %key, %error, "trying again");
                } else {
                    tracing::warn!(controller = controller.name(), %key, %error, "reconcile failed; trying again");
                }
                queue.add_rate_limited(key.clone());
            }
        }
        queue.done(&key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Controller that panics at the first reconcile of each key.
    struct Clumsy {
        attempts: AtomicU32,
        done: tokio::sync::watch::Sender<Vec<u32>>,
    }

    #[async_trait]
    impl Controller for Clumsy {
        type Key = u32;

        fn name(&self) -> &'static str {
            "clumsy"
        }

        fn register(self: Arc<Self>, queue: &Arc<WorkQueue<u32>>) -> Vec<HandlerGuard> {
            (1..=3).for_each(|key| queue.add(key));
            Vec::new()
        }

        async fn reconcile(&self, key: &u32) -> Result<Reconciled, Error> {
            tokio::task::yield_now().await;
            assert!(self.attempts.fetch_add(1, Ordering::Relaxed) >= 3, "the first attempt on {key} fails");
            self.done.send_modify(|done| done.push(*key));
            Ok(Reconciled::Done)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reconcile_that_panics_is_tried_again_and_holds_up_no_other() {
        let (done, mut seen) = tokio::sync::watch::channel(Vec::new());
        let controller = Arc::new(Clumsy { attempts: AtomicU32::new(0), done });
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(run(controller, shutdown.clone()));
        let all = seen.wait_for(|done| done.len() == 3);
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("all keys are done").unwrap();
        shutdown.cancel();
        running.await.unwrap();
        assert_eq!(proto_env::counters::TASK_PANICS.get("clumsy"), 3);
    }
}
