//! The `create` verb of every kind that has no handler of its own.

use http::{Response, StatusCode};
use proto_api::status::Status;

use super::{ResourceCall, input};
use crate::body::Body;
use crate::options::WriteOptions;
use crate::registry::convert;
use crate::registry::write::Write;

/// Creates an object.
///
/// # Errors
///
/// 400, 403, 404, 409, 413, 415, 422, 503, 504.
pub async fn create(call: &ResourceCall<'_>, body: Body) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    let bytes = input::read(body).await?;
    let options = WriteOptions::parse(&call.query, "CreateOptions")?;
    let obj = input::object(call, &bytes, call.kind.gvk, &options.field_validation)?;
    input::check_create_namespace(call, &obj)?;
    let write = Write { ctx: call.ctx, target: call.target(), dry_run: options.dry_run };
    let stored = call.api.registry.create(write, convert::to_storage(call.kind, obj)).await?;
    Ok(format.object(StatusCode::CREATED, stored))
}
