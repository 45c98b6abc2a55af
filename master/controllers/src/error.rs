//! Why a reconcile failed, and what the API's answers mean to controllers.

use kube::core::Status;

/// A failed reconcile. Its key is tried again with a growing delay.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API refused or could not be reached.
    #[error("{}", describe(.0))]
    Api(#[from] kube::Error),
    /// An object holds something that cannot be worked with.
    #[error("{0}")]
    Object(String),
    /// The caches lag behind what this controller wrote itself.
    #[error("{0} is not in the cache yet")]
    Stale(String),
    /// The attempt panicked.
    #[error(transparent)]
    Panicked(#[from] proto_env::supervise::Panicked),
    /// The attempt took too long.
    #[error("no result within the deadline")]
    Deadline,
}

impl Error {
    /// Whether this is part of normal operation: optimistic concurrency, caches that lag, objects and namespaces
    /// that go or are not there yet.
    pub fn is_expected(&self) -> bool {
        match self {
            Error::Api(error) => is_conflict(error) || is_not_found(error) || is_namespace_terminating(error),
            Error::Stale(_) => true,
            _ => false,
        }
    }
}

/// The API's own words where it had any.
pub(crate) fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn status(error: &kube::Error) -> Option<&Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// The object is not there.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    status(error).is_some_and(|status| status.code == 404)
}

/// The object is there already.
pub(crate) fn is_already_exists(error: &kube::Error) -> bool {
    status(error).is_some_and(|status| status.reason == "AlreadyExists")
}

/// The object changed meanwhile, or the write came from a leader whose term has passed.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    status(error).is_some_and(|status| status.code == 409 && status.reason != "AlreadyExists")
}

/// The object cannot be created because its namespace goes away.
pub(crate) fn is_namespace_terminating(error: &kube::Error) -> bool {
    let causes = status(error).and_then(|status| status.details.as_ref()).map(|details| &details.causes);
    causes.is_some_and(|causes| causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
}

/// Success when the object was gone already.
pub(crate) fn ignore_not_found<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Success when the object was there already.
pub(crate) fn ignore_already_exists<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_already_exists(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
