//! Errors of a reconcile, and the meaning of API errors for controllers.

use kube::core::Status;

/// Why a reconcile failed. Its key is retried with growing delays.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API refused or could not be reached.
    #[error("{}", describe(.0))]
    Api(#[from] kube::Error),
    /// An object holds data that cannot be processed.
    #[error("{0}")]
    Object(String),
    /// The cache does not show this controller's own writes yet.
    #[error("{0} is not in the cache yet")]
    Stale(String),
    /// The reconcile panicked.
    #[error(transparent)]
    Panicked(#[from] proto_env::supervise::Panicked),
    /// The reconcile took longer than its deadline.
    #[error("no result within the deadline")]
    Deadline,
}

impl Error {
    /// Whether the error is part of normal operation: conflicts of optimistic concurrency, lagging caches,
    /// objects and namespaces that are being deleted or do not exist yet.
    pub fn is_expected(&self) -> bool {
        match self {
            Error::Api(error) => is_conflict(error) || is_not_found(error) || is_namespace_terminating(error),
            Error::Stale(_) => true,
            _ => false,
        }
    }
}

/// Returns the API's message when there is one.
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

/// Whether the object does not exist.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    status(error).is_some_and(|status| status.code == 404)
}

/// Whether the object exists already.
pub(crate) fn is_already_exists(error: &kube::Error) -> bool {
    status(error).is_some_and(|status| status.reason == "AlreadyExists")
}

/// Whether the object has changed meanwhile, or the write came from a leader whose term has passed.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    status(error).is_some_and(|status| status.code == 409 && status.reason != "AlreadyExists")
}

/// Whether the object cannot be created because its namespace is being deleted.
pub(crate) fn is_namespace_terminating(error: &kube::Error) -> bool {
    let causes = status(error).and_then(|status| status.details.as_ref()).map(|details| &details.causes);
    causes.is_some_and(|causes| causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
}

/// Turns the error that the object does not exist into `Ok(None)`.
pub(crate) fn ignore_not_found<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Turns the error that the object exists already into `Ok(None)`.
pub(crate) fn ignore_already_exists<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_already_exists(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
