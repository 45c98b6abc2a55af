//! NodeRestriction, as far as the authorizer cannot know it: the name of a Node is in the body of its create.

use proto_api::status::Status;
use serde_json::Value;

use crate::registry::metadata;
use crate::registry::write::Write;

/// A node creates no Node and no Lease but its own.
pub fn check_create(write: Write<'_>, obj: &Value) -> Result<(), Status> {
    let Some(node) = write.ctx.user.node_name() else { return Ok(()) };
    let (group, resource) = (write.target.kind.gvk.group, write.target.kind.resource);
    let name = metadata::text(obj, "name");
    let own = match (group, resource) {
        ("", "nodes") | ("coordination.k8s.io", "leases") => name == node,
        _ => true,
    };
    if own {
        return Ok(());
    }
    let why = if resource == "nodes" {
        format!("node {node:?} is not allowed to modify node {name:?}")
    } else {
        "can only access node lease with the same name as the requesting node".to_owned()
    };
    Err(Status::forbidden(group, resource, name, why))
}
