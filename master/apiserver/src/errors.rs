//! Converts errors of the store and of consensus to Kubernetes Statuses; no other file does.
//!
//! client-go resends every 429 and 5xx that carries Retry-After, whatever the verb. So Retry-After is sent
//! only when a write certainly never entered a log; an unknown outcome gets 504 without Retry-After.

use consensus::{ProposeError, ReadError};
use proto_api::status::Status;
use proto_env::planted::{self, Bug};

/// Converts the error of a write that was not acknowledged.
pub fn propose(error: ProposeError) -> Status {
    match error {
        ProposeError::NotEntered { reason } => {
            Status::service_unavailable(format!("no quorum: {reason}")).with_retry_after(1)
        }
        // Planted bug: answers as if the write could safely be sent again.
        ProposeError::Unknown { reason } if planted::is(Bug::UnknownAsNotEntered) => {
            Status::service_unavailable(format!("no quorum: {reason}")).with_retry_after(1)
        }
        // A longer `Retry-After`: an early retry would find the store still full.
        ProposeError::NoRoom { reason } => {
            Status::service_unavailable(format!("no space: {reason}")).with_retry_after(10)
        }
        ProposeError::Overloaded { reason } => Status::too_many_requests(reason, 1),
        ProposeError::Stopped => Status::service_unavailable("this master is shutting down"),
        unknown => Status::timeout(format!("the outcome of the write is not known: {unknown}")),
    }
}

/// Converts the error of a read that could not be made consistent.
pub fn read(error: ReadError) -> Status {
    match error {
        ReadError::Stopped => Status::service_unavailable("this master is shutting down").with_retry_after(1),
        no_quorum => Status::service_unavailable(format!(
            "no quorum: {no_quorum}; stale data is served for resourceVersion=0"
        ))
        .with_retry_after(1),
    }
}

/// Returns the 403 for a writer whose term has passed; no later write with that term can succeed.
pub fn fenced(term: u64) -> Status {
    Status::failure(
        403,
        "Forbidden",
        format!("the writer was started in a term before {term} and leads no more"),
    )
}

/// Returns the 410 for a list or watch whose history has been compacted.
pub fn compacted(requested: u64, oldest: u64) -> Status {
    Status::expired(format!("too old resource version: {requested} ({oldest})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the code and the seconds after which a client sends its write again; `None`: it does not.
    fn answer(error: ProposeError) -> (u16, Option<i32>) {
        let status = propose(error);
        (status.code, status.retry_after())
    }

    #[test]
    fn a_client_is_told_to_send_again_only_what_entered_no_log() {
        let reason = || "a reason".to_owned();
        assert_eq!(answer(ProposeError::Overloaded { reason: reason() }), (429, Some(1)));
        assert_eq!(answer(ProposeError::NotEntered { reason: reason() }), (503, Some(1)));
        assert_eq!(answer(ProposeError::NoRoom { reason: reason() }), (503, Some(10)));
        assert_eq!(answer(ProposeError::Unknown { reason: reason() }), (504, None));
    }
}
