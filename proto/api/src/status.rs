//! `metav1.Status`: the API server's answer when a request fails, with the reasons, codes and messages of
//! `k8s.io/apimachinery/pkg/api/errors`. Handlers return it as their error type; the handler chain writes
//! it out.

use std::fmt;
use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::field::ErrorList;
use crate::go;

/// A `metav1.Status`. Boxed inside, so that it is cheap as the error of a `Result`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Status(Box<StatusBody>);

/// The fields of a `metav1.Status` as they are sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusBody {
    /// The kind, always `Status`.
    pub kind: String,
    /// The API version, always `v1`.
    pub api_version: String,
    /// List metadata (`continue` of an expired list).
    pub metadata: ListMeta,
    /// `Success` or `Failure`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// A message for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Why the request failed, as one word for programs, such as `NotFound`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The object or resource that the request was about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
    /// The HTTP status code; 0 means not set (success of a delete).
    #[serde(skip_serializing_if = "is_zero")]
    pub code: u16,
}

/// The list metadata of a Status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListMeta {
    /// The token that continues a list whose own token has expired; empty if there is none.
    #[serde(rename = "continue", skip_serializing_if = "String::is_empty")]
    pub continue_token: String,
    /// The resource version of the answer; empty if it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
}

/// The details of a Status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    /// The object's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The API group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The resource (or, for `Invalid`, the kind).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The object's UID.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// One cause for each error found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// Seconds after which to try again; also sent as the `Retry-After` header.
    #[serde(skip_serializing_if = "is_zero_i32")]
    pub retry_after_seconds: i32,
}

/// One cause of a failure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// The error as one word for programs, such as `FieldValueInvalid`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// A message for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The path of the invalid field, such as `spec.replicas`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

fn is_zero(v: &u16) -> bool {
    *v == 0
}

fn is_zero_i32(v: &i32) -> bool {
    *v == 0
}

impl Deref for Status {
    type Target = StatusBody;
    fn deref(&self) -> &StatusBody {
        &self.0
    }
}

impl DerefMut for Status {
    fn deref_mut(&mut self) -> &mut StatusBody {
        &mut self.0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Status {}

/// Returns `resource.group`, or `resource` in the core group.
pub fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

impl Status {
    /// Makes a failure with a code, a reason and a message, without details.
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Status(Box::new(StatusBody {
            kind: "Status".into(),
            api_version: "v1".into(),
            status: "Failure".into(),
            message: message.into(),
            reason: reason.into(),
            code,
            ..Default::default()
        }))
    }

    /// Makes a success without a code, as a delete answers; [`Status::with_details`] sets its details.
    pub fn success() -> Self {
        Status(Box::new(StatusBody {
            kind: "Status".into(),
            api_version: "v1".into(),
            status: "Success".into(),
            ..Default::default()
        }))
    }

    /// Sets the group, kind (or resource) and name of the details.
    pub fn with_details(mut self, group: &str, kind: &str, name: &str) -> Self {
        let details = self.0.details.get_or_insert_default();
        details.group = group.into();
        details.kind = kind.into();
        details.name = name.into();
        self
    }

    /// Sets the UID of the details.
    pub fn with_uid(mut self, uid: &str) -> Self {
        self.0.details.get_or_insert_default().uid = uid.into();
        self
    }

    /// Adds one cause: its reason, its message and its field.
    pub fn with_cause(mut self, reason: &str, message: impl Into<String>, field: &str) -> Self {
        self.0.details.get_or_insert_default().causes.push(Cause {
            reason: reason.into(),
            message: message.into(),
            field: field.into(),
        });
        self
    }

    /// Sets the seconds after which to retry. client-go resends any 429 or 5xx with this set, whatever the
    /// verb.
    pub fn with_retry_after(mut self, seconds: i32) -> Self {
        self.0.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    /// Returns the seconds of [`Status::with_retry_after`], for the `Retry-After` header; `None` if not
    /// set.
    pub fn retry_after(&self) -> Option<i32> {
        self.0.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0)
    }

    /// Returns the HTTP code to send: the status's code, or 200 for a success without one.
    pub fn http_code(&self) -> u16 {
        if self.0.code == 0 { 200 } else { self.0.code }
    }

    /// Returns the status as JSON.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }

    /// Returns whether the status has this reason.
    pub fn is(&self, reason: &str) -> bool {
        self.0.reason == reason
    }

    /// 404 `pods "x" not found`.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {} not found", qualified(group, resource), go::quote(name));
        Self::failure(404, "NotFound", message).with_details(group, resource, name)
    }

    /// 404 for a path that no handler knows.
    pub fn no_such_path() -> Self {
        Self::failure(404, "NotFound", "the server could not find the requested resource")
            .with_details("", "", "")
    }

    /// 409 `pods "x" already exists`.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {} already exists", qualified(group, resource), go::quote(name));
        Self::failure(409, "AlreadyExists", message).with_details(group, resource, name)
    }

    /// 409 when no free name was found for a `generateName`.
    pub fn generate_name_conflict(group: &str, resource: &str, name: &str, retry_after: i32) -> Self {
        let message = format!(
            "{} {} already exists, the server was not able to generate a unique name for the object",
            qualified(group, resource),
            go::quote(name)
        );
        Self::failure(409, "AlreadyExists", message)
            .with_details(group, resource, name)
            .with_retry_after(retry_after)
    }

    /// 409 `Operation cannot be fulfilled on pods "x": why`.
    pub fn conflict(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Self {
        let what = qualified(group, resource);
        let message = format!("Operation cannot be fulfilled on {what} {}: {why}", go::quote(name));
        Self::failure(409, "Conflict", message).with_details(group, resource, name)
    }

    /// 409 of a stale resourceVersion, with the text that clients look for.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, resource, name, why)
    }

    /// 422 with a cause for each field error.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: ErrorList) -> Self {
        let mut message = format!("{} {} is invalid", qualified(group, kind), go::quote(name));
        if !errors.is_empty() {
            message = format!("{message}: {}", errors.message());
        }
        let mut status = Self::failure(422, "Invalid", message).with_details(group, kind, name);
        for e in &errors.0 {
            status = status.with_cause(e.kind.reason(), e.body(), &e.field);
        }
        status
    }

    /// 422 without causes or details, as the answer to a JSON patch that fails.
    pub fn unprocessable() -> Self {
        let message = "the server rejected our request due to an error in our request";
        Self::failure(422, "Invalid", message).with_details("", "", "")
    }

    /// 400 `BadRequest` with `message` as the whole message.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, "BadRequest", message)
    }

    /// 401 `Unauthorized`.
    pub fn unauthorized() -> Self {
        Self::failure(401, "Unauthorized", "Unauthorized")
    }

    /// 403 `pods "x" is forbidden: why`.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Self {
        let message = match (resource, name) {
            ("", _) if group.is_empty() => format!("forbidden: {why}"),
            (_, "") => format!("{} is forbidden: {why}", qualified(group, resource)),
            _ => format!("{} {} is forbidden: {why}", qualified(group, resource), go::quote(name)),
        };
        Self::failure(403, "Forbidden", message).with_details(group, resource, name)
    }

    /// 410 `Expired`: the revision or continue token is older than the kept history.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, "Expired", message)
    }

    /// 410 `Gone`.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::failure(410, "Gone", message)
    }

    /// 405 for a method that the path does not support.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::failure(405, "MethodNotAllowed", message).with_details("", "", "")
    }

    /// 405 `create is not supported on resources of kind "pods"`.
    pub fn method_not_supported(group: &str, resource: &str, action: &str) -> Self {
        let what = go::quote(&qualified(group, resource));
        let message = format!("{action} is not supported on resources of kind {what}");
        Self::failure(405, "MethodNotAllowed", message).with_details(group, resource, "")
    }

    /// 406 with the list of the available media types.
    pub fn not_acceptable(available: &[&str]) -> Self {
        let message = format!("406: Not Acceptable\n\nAvailable representations: {}", available.join(", "));
        Self::failure(406, "NotAcceptable", message).with_details("", "", "")
    }

    /// 415 as a negotiation error: `detail` is the whole message.
    pub fn unsupported_media_type(detail: impl Into<String>) -> Self {
        Self::failure(415, "UnsupportedMediaType", detail)
    }

    /// 413 `Request entity too large: why`.
    pub fn request_entity_too_large(why: impl fmt::Display) -> Self {
        Self::failure(413, "RequestEntityTooLarge", format!("Request entity too large: {why}"))
    }

    /// 504 `Timeout: why` without retry seconds: the outcome may be unknown.
    pub fn timeout(why: impl fmt::Display) -> Self {
        Self::failure(504, "Timeout", format!("Timeout: {why}"))
    }

    /// 504 for a resourceVersion that was not reached in time.
    pub fn too_large_resource_version(requested: u64, current: u64) -> Self {
        let why = format!("Too large resource version: {requested}, current: {current}");
        Self::timeout(why)
            .with_cause("ResourceVersionTooLarge", "Too large resource version", "")
            .with_retry_after(1)
    }

    /// 429 `TooManyRequests` with the seconds after which to try again.
    pub fn too_many_requests(message: impl Into<String>, retry_after: i32) -> Self {
        Self::failure(429, "TooManyRequests", message).with_retry_after(retry_after)
    }

    /// 503; add [`Status::with_retry_after`] only if the write certainly did not enter the log.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::failure(503, "ServiceUnavailable", message)
    }

    /// 500 `Internal error occurred: why`.
    pub fn internal(why: impl fmt::Display) -> Self {
        let why = why.to_string();
        Self::failure(500, "InternalError", format!("Internal error occurred: {why}")).with_cause("", why, "")
    }

    /// 500 `ServerTimeout` with the seconds after which to retry.
    pub fn server_timeout(group: &str, resource: &str, operation: &str, retry_after: i32) -> Self {
        let what = qualified(group, resource);
        let message = format!(
            "The {operation} operation against {what} could not be completed at this time, please try again."
        );
        Self::failure(500, "ServerTimeout", message)
            .with_details(group, resource, operation)
            .with_retry_after(retry_after)
    }
}

#[cfg(test)]
mod tests;
