//! Tools with which leader-only components use the Kubernetes API alone: warm shared caches, a
//! deduplicating work queue and an event recorder. Called by `master/controllers` and `master/scheduler`;
//! sends all requests through a `kube::Client`.
//!
//! ```text
//! API --list/watch--> Informer --Delta--> handlers --key--> WorkQueue --key--> reconcile --write--> API
//! ```
//!
//! [`Informers`] run on every master from boot on, so their caches are warm when leadership arrives. Handlers
//! and queues exist for the length of one leadership. Because a new leader acts within milliseconds of the
//! old one's death, [`Informers::catch_up`] first brings the caches to a revision that holds every write
//! acknowledged to the old leader: otherwise the last objects it created would be created a second time.

mod cache;
#[cfg(feature = "fake-api")]
pub mod fake;
mod informer;
mod informers;
mod list_watch;
mod object_key;
mod recorder;
mod tolerations;
mod trim;
mod work_queue;

pub use cache::Cache;
pub use informer::{Delta, HandlerGuard, Informer};
pub use informers::{AskProgress, Informers};
pub use list_watch::{ListWatch, Object};
pub use object_key::ObjectKey;
pub use recorder::{EventType, Recorder, reference};
pub use tolerations::tolerates;
pub use work_queue::WorkQueue;

/// Why a list or watch of an informer failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API answered a list or watch with an error.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// A list or an object has no numeric resourceVersion.
    #[error("{what} has no usable resourceVersion ({found:?})")]
    Revision {
        /// Kind of the answer: a list or an object.
        what: &'static str,
        /// The resourceVersion found, if any.
        found: Option<String>,
    },
    /// A list is older than the state this cache has already shown.
    #[error("list at revision {listed} is older than {seen}, which was already seen")]
    Rewound {
        /// Revision of the list.
        listed: u64,
        /// Newest revision seen before.
        seen: u64,
    },
    /// A list did not answer within its deadline.
    #[error("no answer within the deadline")]
    Deadline,
}
