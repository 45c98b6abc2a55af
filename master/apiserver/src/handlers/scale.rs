//! The scale subresource: an `autoscaling/v1` Scale that represents `spec.replicas` of a workload.

use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use proto_api::field::ErrorList;
use proto_api::kinds::GroupVersionKind;
use proto_api::selector::Selector;
use proto_api::status::Status;
use serde_json::{Map, Value, json};

use super::{ResourceCall, input};
use crate::body::Body;
use crate::decode::FieldValidation;
use crate::options::WriteOptions;
use crate::patch::{self, PatchType};
use crate::registry::write::{Rules, Write};
use crate::registry::{kinds, metadata, object};

const SCALE: GroupVersionKind = GroupVersionKind { group: "autoscaling", version: "v1", kind: "Scale" };

/// Carries out `get`, `update` or `patch` on the Scale of a workload.
///
/// # Errors
///
/// The errors of the same verb on the workload itself.
pub async fn handle(call: &ResourceCall<'_>, verb: &str, body: Body) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    let name = &call.ctx.info.name;
    let encoding = format.representation.encoding;
    let registry = &call.api.registry;
    let changed = match verb {
        "get" => {
            let object = registry.get(call.ctx, call.target(), name, None).await?;
            object::value(&object, object.mod_revision)?
        }
        "update" => {
            let bytes = input::read(body).await?;
            let options = WriteOptions::parse(&call.query, "UpdateOptions")?;
            let scale = input::object(call, &bytes, SCALE, &options.field_validation)?;
            input::check_identity(call, &scale)?;
            let write = Write { ctx: call.ctx, target: call.target(), dry_run: options.dry_run };
            let make = |old: Option<&Value>| apply(call, old, &scale);
            registry.update(write, name, Rules::Main, make).await?.object
        }
        "patch" => {
            let patch_type = PatchType::from_content_type(call.header(CONTENT_TYPE))?;
            let bytes = input::read(body).await?;
            let options = WriteOptions::parse(&call.query, "PatchOptions")?;
            let mode = FieldValidation::parse(Some(&options.field_validation), "PatchOptions")?;
            let write = Write { ctx: call.ctx, target: call.target(), dry_run: options.dry_run };
            let make = |old: Option<&Value>| {
                let before = scale_of(old.unwrap_or(&Value::Null));
                let patched = patch::apply_patch(patch_type, &bytes, &before, input::parts(SCALE), mode)?;
                input::check_identity(call, &patched.object)?;
                apply(call, old, &patched.object)
            };
            registry.update(write, name, Rules::Main, make).await?.object
        }
        _ => return Err(Status::method_not_allowed()),
    };
    Ok(crate::respond::encode(encoding, StatusCode::OK, &scale_of(&changed)))
}

/// Returns the workload with the replicas of a Scale.
fn apply(call: &ResourceCall<'_>, old: Option<&Value>, scale: &Value) -> Result<Value, Status> {
    let name = &call.ctx.info.name;
    let old = old.ok_or_else(|| call.target().not_found(name))?;
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    let mut errs = ErrorList::default();
    kinds::scale::validate(scale, &mut errs);
    if !errs.is_empty() {
        return Err(Status::invalid(SCALE.group, SCALE.kind, name, errs));
    }
    let mut new = old.clone();
    if !new.get("spec").is_some_and(Value::is_object) {
        new["spec"] = Value::Object(Map::new());
    }
    new["spec"]["replicas"] = Value::from(replicas);
    for key in ["resourceVersion", "uid"] {
        let sent = metadata::text(scale, key).to_owned();
        metadata::of(&mut new).insert(key.to_owned(), Value::from(sent));
    }
    Ok(new)
}

/// Returns the Scale that represents a workload.
fn scale_of(workload: &Value) -> Value {
    let mut meta = Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = workload.get("metadata").and_then(|m| m.get(key)) {
            meta.insert(key.to_owned(), value.clone());
        }
    }
    let replicas = workload.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    let spec = if replicas == 0 { json!({}) } else { json!({"replicas": replicas}) };
    let running = workload.pointer("/status/replicas").and_then(Value::as_i64).unwrap_or(0);
    let mut status = json!({"replicas": running});
    let selector = Selector::from_label_selector(workload.pointer("/spec/selector"));
    if let Ok(selector) = selector.map(|s| s.to_string())
        && !selector.is_empty()
    {
        status["selector"] = Value::from(selector);
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta, "spec": spec, "status": status})
}
