//! Types and functions that create, update and delete share: the request of a write, its rules, the stored
//! form, and the attributes passed to admission.

use proto_api::field::ErrorList;
use proto_api::status::Status;
use serde_json::Value;
use storage::Revision;

use super::{Target, object};
use crate::admission::Attributes;
use crate::context::Context;
use crate::decode;

/// Maximum number of attempts of a write on newer state. Stock retries until the request's deadline; a write
/// that fails this often is starved and fails with an error instead.
pub(super) const ATTEMPTS: usize = 256;

/// The request of a write, with the kind and namespace of the object.
#[derive(Clone, Copy)]
pub struct Write<'a> {
    /// User, deadline and warnings of the request.
    pub ctx: &'a Context,
    /// Kind and namespace of the object.
    pub target: Target<'a>,
    /// Whether `dryRun=All` was given: everything but the write itself is done.
    pub dry_run: bool,
}

impl<'a> Write<'a> {
    /// Returns the attributes that admission receives.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes {
            user: &self.ctx.user,
            group: self.target.kind.gvk.group,
            resource: self.target.kind.resource,
            subresource: &self.ctx.info.subresource,
            namespace: self.target.namespace,
        }
    }
}

/// The part of an object that an update writes, which decides what it may change and how it is validated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rules {
    /// The object itself, without its status.
    Main,
    /// `status`: the status and the metadata.
    Status,
    /// `namespaces/finalize`: `spec.finalizers` alone.
    Finalize,
    /// `pods/ephemeralcontainers`.
    EphemeralContainers,
    /// `pods/resize`.
    Resize,
    /// `pods/binding`: the handler has validated the object, so only metadata is validated.
    Binding,
}

/// Result of one attempt to write.
pub(super) enum WriteAttempt {
    Done(Value),
    /// The attempt used old state; newer state is at this revision.
    Newer(Revision),
    /// The name is taken.
    Taken,
}

pub(super) fn starving() -> Status {
    Status::failure(
        409,
        "Conflict",
        "the object changed too often while the write was tried; please apply your changes to the latest version and try again",
    )
}

/// Returns canonical JSON of an object: compact, sorted, without its resourceVersion.
pub(super) fn encode(obj: &Value) -> Result<Vec<u8>, Status> {
    let mut stored = obj.clone();
    object::set_version(&mut stored, None);
    serde_json::to_vec(&stored).map_err(Status::internal)
}

pub(super) fn invalid_unless_empty(target: Target<'_>, name: &str, errs: ErrorList) -> Result<(), Status> {
    if errs.is_empty() {
        return Ok(());
    }
    // Stock names the kind as stored, even for an Event written through events.k8s.io.
    Err(Status::invalid(target.kind.storage.0, target.kind.gvk.kind, name, errs))
}

/// Converts an object to its stored form, without the empty fields that Kubernetes' types leave out.
pub(super) fn canonical(target: Target<'_>, obj: &mut Value) {
    let (group, version) = target.kind.storage;
    decode::canonical(obj, (group, version, target.kind.gvk.kind));
}
