//! `pods/binding` and the older `bindings`: the scheduler assigns a pod to a node.

use http::{Response, StatusCode};
use proto_api::field::ErrorList;
use proto_api::status::Status;
use serde_json::Value;

use super::{ResourceCall, input};
use crate::body::{self, Body};
use crate::options::WriteOptions;
use crate::registry::kinds::pod;
use crate::registry::write::{Rules, Write};
use crate::registry::{Target, metadata};

/// Binds a pod.
///
/// # Errors
///
/// 400 and 422 for a bad Binding, 404 for no such pod, 409 where the pod is assigned or being deleted.
pub async fn bind(call: &ResourceCall<'_>, body: Body) -> Result<Response<Body>, Status> {
    let bytes = input::read(body).await?;
    let options = WriteOptions::parse(&call.query, "CreateOptions")?;
    let gvk = proto_api::kinds::GroupVersionKind { group: "", version: "v1", kind: "Binding" };
    let binding = input::object(call, &bytes, gvk, &options.field_validation)?;
    let name = if call.ctx.info.name.is_empty() {
        metadata::text(&binding, "name").to_owned()
    } else {
        call.ctx.info.name.clone()
    };
    let own = metadata::text(&binding, "name");
    if !own.is_empty() && own != name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let mut errs = ErrorList::default();
    pod::validate_binding(&binding, &mut errs);
    if !errs.is_empty() {
        return Err(Status::invalid("", "Binding", &name, errs));
    }
    let pods = proto_api::kinds::by_resource("", "v1", "pods").ok_or_else(Status::no_such_path)?;
    let target = Target::new(pods, &call.ctx.info.namespace);
    let write = Write { ctx: call.ctx, target, dry_run: options.dry_run };
    let now = call.api.registry.now();
    let make = |old: Option<&Value>| {
        let old = old.ok_or_else(|| target.not_found(&name))?;
        assign(old, &binding, &name, &now)
    };
    call.api.registry.update(write, &name, Rules::Binding, make).await?;
    let mut status = Status::success();
    status.code = 201;
    Ok(body::json_response(StatusCode::CREATED, &status.to_value()))
}

/// Returns the pod with the binding's node assigned.
fn assign(old: &Value, binding: &Value, name: &str, now: &str) -> Result<Value, Status> {
    let conflict = |why: String| Status::conflict("", "pods/binding", name, why);
    let (uid, pod_uid) = (metadata::text(binding, "uid"), metadata::text(old, "uid"));
    if !uid.is_empty() && uid != pod_uid {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {pod_uid}");
        return Err(conflict(why));
    }
    let version = metadata::text(binding, "resourceVersion");
    if !version.is_empty() && version != metadata::text(old, "resourceVersion") {
        return Err(Status::modified("", "pods", name));
    }
    let mut pod = old.clone();
    pod::prepare_binding(&mut pod, binding, now).map_err(conflict)?;
    Ok(pod)
}
