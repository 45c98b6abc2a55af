//! The verbs `update` and `patch`, of objects and of subresources that are parts of them.

use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use proto_api::field::{Error, ErrorList, Path};
use proto_api::kinds::GroupVersionKind;
use proto_api::status::Status;
use serde_json::Value;

use super::{ResourceCall, input};
use crate::body::Body;
use crate::decode::FieldValidation;
use crate::options::WriteOptions;
use crate::patch::{self, PatchType};
use crate::registry::update::Updated;
use crate::registry::write::{Rules, Write};
use crate::registry::{convert, metadata};

/// Replaces an object or a subresource.
///
/// # Errors
///
/// 400, 404, 409, 413, 415, 422, 503, 504.
pub async fn put(call: &ResourceCall<'_>, sub: &str, body: Body) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    let bytes = input::read(body).await?;
    let options = WriteOptions::parse(&call.query, "UpdateOptions")?;
    let obj = input::object(call, &bytes, gvk_of(call, sub), &options.field_validation)?;
    input::check_identity(call, &obj)?;
    let obj = convert::to_storage(call.kind, obj);
    let write = Write { ctx: call.ctx, target: call.target(), dry_run: options.dry_run };
    let make = |old: Option<&Value>| {
        let mut obj = obj.clone();
        if old.is_none() {
            // A resourceVersion means that the client read the object before: it was deleted since and must
            // not be created.
            match metadata::text(&obj, "resourceVersion") {
                "" | "0" => metadata::of(&mut obj).remove("resourceVersion"),
                _ => return Err(call.target().not_found(&call.ctx.info.name)),
            };
        }
        Ok(obj)
    };
    let updated = call.api.registry.update(write, &call.ctx.info.name, rules(sub), make).await?;
    Ok(format.object(code(&updated), updated.object))
}

/// Patches an object or a subresource; repeats the patch on newer state when another write came first.
///
/// # Errors
///
/// 400, 404, 409, 413, 415, 422, 503, 504.
pub async fn patch(call: &ResourceCall<'_>, sub: &str, body: Body) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    let patch_type = PatchType::from_content_type(call.header(CONTENT_TYPE))?;
    let bytes = input::read(body).await?;
    let options = WriteOptions::parse(&call.query, "PatchOptions")?;
    check_patch_options(patch_type, &options)?;
    let mode = FieldValidation::parse(Some(&options.field_validation), "PatchOptions")?;
    let gvk = gvk_of(call, sub);
    let write = Write { ctx: call.ctx, target: call.target(), dry_run: options.dry_run };
    let make = |old: Option<&Value>| {
        // A patch never creates an object, even of a kind whose PUT does.
        let old = old.ok_or_else(|| call.target().not_found(&call.ctx.info.name))?;
        let served = convert::from_storage(call.kind, old.clone());
        let apply = || patch::apply_patch(patch_type, &bytes, &served, input::parts(gvk), mode);
        let patched = call.api.heavy.in_place(bytes.len(), apply)?;
        for warning in patched.warnings {
            call.ctx.warn(warning);
        }
        input::check_identity(call, &patched.object)?;
        Ok(convert::to_storage(call.kind, patched.object))
    };
    let updated = call.api.registry.update(write, &call.ctx.info.name, rules(sub), make).await?;
    Ok(format.object(code(&updated), updated.object))
}

fn check_patch_options(patch_type: PatchType, options: &WriteOptions) -> Result<(), Status> {
    let mut errs = ErrorList::default();
    if matches!(patch_type, PatchType::Apply) {
        if options.field_manager.is_empty() {
            errs.push(Error::required(&Path::new("fieldManager"), "is required for apply patch"));
        }
    } else if options.force.is_some() {
        errs.push(Error::forbidden(&Path::new("force"), "may not be specified for non-apply patch"));
    }
    if errs.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "PatchOptions", "", errs)) }
}

fn gvk_of(call: &ResourceCall<'_>, sub: &str) -> GroupVersionKind {
    call.kind.subresource(sub).map_or(call.kind.gvk, |s| s.body)
}

fn rules(sub: &str) -> Rules {
    match sub {
        "" => Rules::Main,
        "status" => Rules::Status,
        "finalize" => Rules::Finalize,
        "ephemeralcontainers" => Rules::EphemeralContainers,
        "resize" => Rules::Resize,
        _ => Rules::Main,
    }
}

fn code(updated: &Updated) -> StatusCode {
    if updated.created { StatusCode::CREATED } else { StatusCode::OK }
}
