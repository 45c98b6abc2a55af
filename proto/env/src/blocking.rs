//! Runs work that blocks its thread, such as reading and syncing files. Used by `consensus`; the simulation
//! has one thread and runs the work in place.

use std::io;

/// How blocking work runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocking {
    /// On separate threads, so that no other task waits for it.
    Threads,
    /// Within the caller, so that the order of events is always the same.
    Inline,
}

impl Blocking {
    /// Runs `work` and waits for it. An error means that `work` panicked or the runtime is shutting down.
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        match self {
            Self::Threads => tokio::task::spawn_blocking(work).await.map_err(io::Error::other),
            Self::Inline => Ok(work()),
        }
    }

    /// Runs `work`, which may block for a moment, on the calling thread. The thread's other tasks run on
    /// another thread meanwhile.
    pub fn in_place<T>(self, work: impl FnOnce() -> T) -> T {
        let multi = |handle: tokio::runtime::Handle| {
            handle.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread
        };
        match self {
            Self::Threads if tokio::runtime::Handle::try_current().is_ok_and(multi) => {
                tokio::task::block_in_place(work)
            }
            _ => work(),
        }
    }
}
