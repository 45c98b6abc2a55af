//! The one place where errors of the store and of consensus become Kubernetes Statuses.
//!
//! client-go resends every 429 and 5xx that carries Retry-After, whatever the verb. So Retry-After goes out
//! only when a write certainly never entered a log; an outcome that is not known is 504 without it.

use consensus::{ProposeError, ReadError};
use proto_api::status::Status;
use proto_env::planted::{self, Bug};

/// A write that was not acknowledged.
pub fn propose(error: ProposeError) -> Status {
    match error {
        ProposeError::NotEntered { reason } => {
            Status::service_unavailable(format!("no quorum: {reason}")).with_retry_after(1)
        }
        // Planted: it sounds as if it might be sent again.
        ProposeError::Unknown { reason } if planted::is(Bug::UnknownAsNotEntered) => {
            Status::service_unavailable(format!("no quorum: {reason}")).with_retry_after(1)
        }
        // Nothing is gained by trying again soon.
        ProposeError::NoRoom { reason } => {
            Status::service_unavailable(format!("no space: {reason}")).with_retry_after(10)
        }
        ProposeError::Overloaded { reason } => Status::too_many_requests(reason, 1),
        ProposeError::Stopped => Status::service_unavailable("this master is shutting down"),
        unknown => Status::timeout(format!("the outcome of the write is not known: {unknown}")),
    }
}

/// A read that could not be made consistent.
pub fn read(error: ReadError) -> Status {
    match error {
        ReadError::Stopped => Status::service_unavailable("this master is shutting down").with_retry_after(1),
        no_quorum => Status::service_unavailable(format!(
            "no quorum: {no_quorum}; stale data is served for resourceVersion=0"
        ))
        .with_retry_after(1),
    }
}

/// A writer whose term has passed: it can never succeed again.
pub fn fenced(term: u64) -> Status {
    Status::failure(
        403,
        "Forbidden",
        format!("the writer was started in a term before {term} and leads no more"),
    )
}

/// The history a list or watch asked for is gone.
pub fn compacted(requested: u64, oldest: u64) -> Status {
    Status::expired(format!("too old resource version: {requested} ({oldest})"))
}
