//! What create, update and delete share: the request of a write, the rules it obeys, the stored form, and what
//! admission is told. `create.rs`, `update.rs` and `delete.rs` beside it carry the writes out.

use proto_api::field::ErrorList;
use proto_api::status::Status;
use serde_json::Value;
use storage::Revision;

use super::{Target, object};
use crate::admission::Attributes;
use crate::context::Context;
use crate::decode;

/// How often a write is tried on newer state. Stock retries until the request's deadline; a write that loses
/// this often is starving and better told so.
pub(super) const ATTEMPTS: usize = 256;

/// The request of a write: who asks, for an object of which kind and namespace.
#[derive(Clone, Copy)]
pub struct Write<'a> {
    /// The request.
    pub ctx: &'a Context,
    /// Where.
    pub target: Target<'a>,
    /// `dryRun=All`: everything but the write itself.
    pub dry_run: bool,
}

impl<'a> Write<'a> {
    /// What admission is told about the write.
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
    /// `pods/binding`: the handler has validated it, so that metadata rules alone apply.
    Binding,
}

/// Result of one attempt to write.
pub(super) enum Tried {
    Done(Value),
    /// The state it was made on is old; newer state is at this revision.
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

/// Canonical JSON of an object: compact, sorted, without its resourceVersion.
pub(super) fn encode(obj: &Value) -> Result<Vec<u8>, Status> {
    let mut stored = obj.clone();
    object::set_version(&mut stored, None);
    serde_json::to_vec(&stored).map_err(Status::internal)
}

pub(super) fn invalid_unless_empty(target: Target<'_>, name: &str, errs: ErrorList) -> Result<(), Status> {
    if errs.is_empty() {
        return Ok(());
    }
    // Stock names the storage kind here, also for an Event that came through events.k8s.io.
    Err(Status::invalid(target.kind.storage.0, target.kind.gvk.kind, name, errs))
}

/// The form in which an object is stored: what Kubernetes' types leave out when empty is left out.
pub(super) fn canonical(target: Target<'_>, obj: &mut Value) {
    let (group, version) = target.kind.storage;
    decode::canonical(obj, (group, version, target.kind.gvk.kind));
}
