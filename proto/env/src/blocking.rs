//! Where work runs that blocks its thread: reading files, syncing them. Called by
//! `consensus`; the simulation has one thread and runs it in place.

use std::io;

/// Where blocking work runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocking {
    /// On threads of their own, so that nothing else waits for it.
    Threads,
    /// Within the caller: the same order of events every time.
    Inline,
}

impl Blocking {
    /// Runs `work` and waits for it. An error means that it panicked or that the
    /// runtime is shutting down.
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        match self {
            Self::Threads => tokio::task::spawn_blocking(work).await.map_err(io::Error::other),
            Self::Inline => Ok(work()),
        }
    }

    /// Runs `work`, which may block for a moment, on the calling thread. The other
    /// tasks of that thread go on elsewhere meanwhile.
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
