//! Reads request bodies up to the size limit, decodes them, and checks them against the URL.

use std::pin::Pin;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, Collected, LengthLimitError, Limited};
use proto_api::kinds::GroupVersionKind;
use proto_api::status::Status;
use serde_json::Value;

use super::ResourceCall;
use crate::api::MAX_BODY_BYTES;
use crate::body::{Body, BoxError};
use crate::decode::{self, FieldValidation};
use crate::registry::metadata;

/// Reads a body, up to 3 MiB.
///
/// # Errors
///
/// 413 for a larger body, 400 where the body cannot be read.
pub async fn read(body: Body) -> Result<Bytes, Status> {
    match collect(body).await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Status::request_entity_too_large(format!("limit is {MAX_BODY_BYTES}")))
        }
        Err(error) => Err(Status::bad_request(format!("unable to read the body: {error}"))),
    }
}

/// Collects a body. Boxed: in an async function the body's boxed error type would make every handler's future
/// generic over a lifetime for which the compiler cannot prove `Send`.
fn collect(body: Body) -> Pin<Box<dyn Future<Output = Result<Collected<Bytes>, BoxError>> + Send>> {
    Box::pin(Limited::new(body, MAX_BODY_BYTES).collect())
}

/// Decodes an object of the expected kind; adds decoding warnings to the answer.
///
/// # Errors
///
/// 400 and 415 as Kubernetes gives them.
pub fn object(
    call: &ResourceCall<'_>,
    bytes: &[u8],
    gvk: GroupVersionKind,
    mode: &str,
) -> Result<Value, Status> {
    let mode = FieldValidation::parse(Some(mode), "")?;
    let content_type = call.header(CONTENT_TYPE);
    let decoded = call
        .api
        .heavy
        .in_place(bytes.len(), || decode::decode_object(content_type, bytes, parts(gvk), mode))?;
    for warning in decoded.warnings {
        call.ctx.warn(warning);
    }
    Ok(decoded.object)
}

/// Returns a group, version and kind as the tuple that `decode.rs` takes.
pub fn parts(gvk: GroupVersionKind) -> decode::Gvk<'static> {
    (gvk.group, gvk.version, gvk.kind)
}

/// Checks the namespace of an object that is about to be created against the URL.
///
/// # Errors
///
/// 400 where body and URL differ.
pub fn check_create_namespace(call: &ResourceCall<'_>, obj: &Value) -> Result<(), Status> {
    let namespace = metadata::text(obj, "namespace");
    if call.kind.namespaced && call.ctx.info.namespace.is_empty() {
        return Err(Status::bad_request("an empty namespace may not be set during creation"));
    }
    if call.kind.namespaced && !namespace.is_empty() && namespace != call.ctx.info.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// Checks name and namespace of an object against the URL it was sent to.
///
/// # Errors
///
/// 400 where body and URL differ or the name is missing.
pub fn check_identity(call: &ResourceCall<'_>, obj: &Value) -> Result<(), Status> {
    let info = &call.ctx.info;
    let (name, namespace) = (metadata::text(obj, "name"), metadata::text(obj, "namespace"));
    if name.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            info.name
        )));
    }
    if name != info.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            info.name
        )));
    }
    if call.kind.namespaced && !namespace.is_empty() && namespace != info.namespace {
        return Err(Status::bad_request(format!(
            "the namespace of the object ({namespace}) does not match the namespace on the URL ({})",
            info.namespace
        )));
    }
    Ok(())
}
