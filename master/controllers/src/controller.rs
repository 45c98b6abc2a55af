//! The frame every controller runs in: what watches fill its queue, and what works it off. Called by `lib.rs`;
//! calls each controller's `reconcile`, which gets a key and never learns why it came.

use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use master_client::{HandlerGuard, WorkQueue};
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// A reconcile that takes longer is broken off and tried again: a hung request must not hold its key for ever.
const RECONCILE_DEADLINE: Duration = Duration::from_secs(120);

/// What is to happen to a key after a successful reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing until something changes.
    Done,
    /// Look again after this long even if nothing changes.
    After(Duration),
}

/// A level-triggered controller.
#[async_trait]
pub(crate) trait Controller: Send + Sync + 'static {
    /// What names a unit of work.
    type Key: Clone + Ord + Debug + Display + Send + Sync + 'static;

    /// Name in logs.
    fn name(&self) -> &'static str;

    /// Keys worked on at the same time.
    fn workers(&self) -> usize {
        1
    }

    /// Registers the handlers that turn changes into keys. Everything there is comes in at once as additions.
    fn register(self: Arc<Self>, queue: &Arc<WorkQueue<Self::Key>>) -> Vec<HandlerGuard>;

    /// Brings the world nearer to what `key` asks for.
    async fn reconcile(&self, key: &Self::Key) -> Result<Outcome, Error>;
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
            result = attempt => result.unwrap_or(Err(Error::Deadline)),
        };
        match result {
            Ok(outcome) => {
                queue.forget(&key);
                if let Outcome::After(delay) = outcome {
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
