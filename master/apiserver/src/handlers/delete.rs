//! The verbs `delete` and `deletecollection`, and `pods/eviction`.

use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use proto_api::kinds::GroupVersionKind;
use proto_api::status::Status;
use serde_json::{Value, json};

use super::{ResourceCall, input};
use crate::body::{self, Body};
use crate::decode;
use crate::options::{DeleteOptions, ListOptions, WriteOptions};
use crate::registry::delete::Deleted;
use crate::registry::selection::Selection;
use crate::registry::write::Write;
use crate::registry::{convert, metadata};

/// Kinds whose delete answers with the object instead of a Status.
const RETURNS_OBJECT: [(&str, &str); 13] = [
    ("", "namespaces"),
    ("", "persistentvolumeclaims"),
    ("", "persistentvolumes"),
    ("", "pods"),
    ("", "podtemplates"),
    ("", "replicationcontrollers"),
    ("", "resourcequotas"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("batch", "jobs"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "volumeattachments"),
];

const DELETE_OPTIONS: GroupVersionKind =
    GroupVersionKind { group: "meta.k8s.io", version: "v1", kind: "DeleteOptions" };

/// Deletes one object.
///
/// # Errors
///
/// 400, 403, 404, 409, 422, 503, 504.
pub async fn delete(call: &ResourceCall<'_>, body: Body) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    let options = delete_options(call, body).await?;
    let write = Write { ctx: call.ctx, target: call.target(), dry_run: options.dry_run };
    let deleted = call.api.registry.delete(write, &call.ctx.info.name, &options).await?;
    // As in stock, 202 is sent only to old clients that ask for cascading deletion with
    // `orphanDependents=false`.
    let waits = !deleted.gone && options.orphan_dependents == Some(false);
    let code = if waits { StatusCode::ACCEPTED } else { StatusCode::OK };
    let returns = RETURNS_OBJECT.contains(&(call.kind.gvk.group, call.kind.resource));
    if deleted.gone && !returns {
        return Ok(body::status_response(&success(call, &deleted)));
    }
    Ok(format.object(code, deleted.object))
}

fn success(call: &ResourceCall<'_>, deleted: &Deleted) -> Status {
    let name = metadata::text(&deleted.object, "name");
    Status::success()
        .with_details(call.kind.gvk.group, call.kind.resource, name)
        .with_uid(metadata::text(&deleted.object, "uid"))
}

async fn delete_options(call: &ResourceCall<'_>, body: Body) -> Result<DeleteOptions, Status> {
    let bytes = input::read(body).await?;
    if bytes.is_empty() {
        return DeleteOptions::parse(&call.query, None);
    }
    let content_type = call.header(CONTENT_TYPE);
    let decoded = decode::decode_options(content_type, &bytes, input::parts(DELETE_OPTIONS))?;
    DeleteOptions::parse(&call.query, Some(&decoded))
}

/// Deletes the objects that a list with the same query would return; answers with that list.
///
/// # Errors
///
/// The errors of `delete` and `list`.
pub async fn delete_collection(call: &ResourceCall<'_>, body: Body) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    let options = delete_options(call, body).await?;
    let list_options = ListOptions::parse(&call.query, false)?;
    let target = call.target();
    let selection = Selection::parse(target, &list_options.label_selector, &list_options.field_selector)?;
    let page = call.api.registry.list(call.ctx, target, &selection, &list_options).await?;
    let mut items = Vec::new();
    for object in &page.objects {
        let value = crate::registry::object::value(object, object.mod_revision)?;
        let (name, namespace) = (metadata::text(&value, "name"), metadata::text(&value, "namespace"));
        let at = crate::registry::Target { namespace, ..target };
        let write = Write { ctx: call.ctx, target: at, dry_run: options.dry_run };
        match call.api.registry.delete(write, name, &options).await {
            Ok(_) => items.push(convert::from_storage(call.kind, value)),
            Err(status) if status.is("NotFound") => {}
            Err(status) => return Err(status),
        }
    }
    let list = json!({
        "kind": call.kind.list_kind(), "apiVersion": call.kind.api_version(),
        "metadata": {"resourceVersion": page.revision.to_string()}, "items": items,
    });
    Ok(format.encode(StatusCode::OK, &list))
}

/// Evicts a pod: deletes it with the options of the Eviction. PodDisruptionBudgets are not a kind yet.
///
/// # Errors
///
/// The errors of `delete`.
pub async fn evict(call: &ResourceCall<'_>, body: Body) -> Result<Response<Body>, Status> {
    let bytes = input::read(body).await?;
    let write_options = WriteOptions::parse(&call.query, "CreateOptions")?;
    let gvk = call.kind.subresource("eviction").map_or(call.kind.gvk, |s| s.body);
    let eviction = input::object(call, &bytes, gvk, &write_options.field_validation)?;
    let name = metadata::text(&eviction, "name");
    if !name.is_empty() && name != call.ctx.info.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let delete_options =
        eviction.get("deleteOptions").cloned().unwrap_or_else(|| Value::Object(Default::default()));
    let mut options = DeleteOptions::parse(&call.query, Some(&delete_options))?;
    options.dry_run |= write_options.dry_run;
    let write = Write { ctx: call.ctx, target: call.target(), dry_run: options.dry_run };
    call.api.registry.delete(write, &call.ctx.info.name, &options).await?;
    let mut status = Status::success();
    status.code = 201;
    Ok(body::json_response(StatusCode::CREATED, &status.to_value()))
}
