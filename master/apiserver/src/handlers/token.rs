//! `serviceaccounts/token`: the TokenRequest API.

use http::{Response, StatusCode};
use proto_api::field::{Error, ErrorList, Path};
use proto_api::status::Status;
use serde_json::Value;

use super::{ResourceCall, input};
use crate::admission;
use crate::authn::service_account::{BoundObject, TokenSubject};
use crate::body::Body;
use crate::options::WriteOptions;
use crate::registry::metadata;
use crate::registry::write::Write;

const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;

/// Issues a token for a ServiceAccount, bound to a pod where the request says so.
///
/// # Errors
///
/// 400, 403 for a node whose pods do not need the token, 404, 409, 422.
pub async fn create(call: &ResourceCall<'_>, body: Body) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    let bytes = input::read(body).await?;
    let options = WriteOptions::parse(&call.query, "CreateOptions")?;
    let gvk = call.kind.subresource("token").map_or(call.kind.gvk, |s| s.body);
    let mut request = input::object(call, &bytes, gvk, &options.field_validation)?;
    let (name, namespace) = (&call.ctx.info.name, &call.ctx.info.namespace);
    let account = call.api.registry.get(call.ctx, call.target(), name, None).await?;
    let account = crate::registry::object::value(&account, account.mod_revision)?;
    let write = Write { ctx: call.ctx, target: call.target(), dry_run: options.dry_run };
    admission::check_token_request(&call.api.registry, &write.attributes(), name, &request).await?;
    check_names(call, &request)?;
    let longest = call.api.registry.settings().max_token_seconds.unwrap_or(MAX_SECONDS);
    let seconds = seconds(&request)?.min(longest);
    let mut subject = TokenSubject {
        namespace: namespace.clone(),
        name: name.clone(),
        uid: metadata::text(&account, "uid").to_owned(),
        ..TokenSubject::default()
    };
    bind(call, &request, &mut subject)?;
    let audiences: Vec<String> = request
        .pointer("/spec/audiences")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default();
    let issuer = &call.api.tokens;
    let audiences = if audiences.is_empty() { vec![issuer.issuer().to_owned()] } else { audiences };
    let token = issuer.issue(&subject, &audiences, seconds, &call.api.registry).await?;
    request["spec"]["audiences"] = Value::from(audiences);
    request["spec"]["expirationSeconds"] = Value::from(seconds);
    request["status"]["token"] = Value::from(token);
    request["status"]["expirationTimestamp"] = Value::from(call.api.registry.timestamp(seconds));
    let meta = metadata::of(&mut request);
    meta.insert("name".to_owned(), Value::from(name.as_str()));
    meta.insert("namespace".to_owned(), Value::from(namespace.as_str()));
    meta.insert("creationTimestamp".to_owned(), Value::from(call.api.registry.now()));
    Ok(crate::respond::encode(format.representation.encoding, StatusCode::CREATED, &request))
}

/// Checks name and namespace in the request's body against those of the path.
fn check_names(call: &ResourceCall<'_>, request: &Value) -> Result<(), Status> {
    let info = &call.ctx.info;
    for (key, of_path) in [("name", &info.name), ("namespace", &info.namespace)] {
        let sent = metadata::text(request, key);
        if !sent.is_empty() && sent != of_path.as_str() {
            let why = format!("must match the service account {key} if specified");
            let errs = ErrorList(vec![Error::invalid(&Path::new("metadata").child(key), sent, why)]);
            return Err(Status::invalid("authentication.k8s.io", "TokenRequest", &info.name, errs));
        }
    }
    Ok(())
}

fn seconds(request: &Value) -> Result<i64, Status> {
    let seconds =
        request.pointer("/spec/expirationSeconds").and_then(Value::as_i64).unwrap_or(DEFAULT_SECONDS);
    let at = Path::new("spec").child("expirationSeconds");
    let why = if seconds < MIN_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > MAX_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(seconds);
    };
    let errs = ErrorList(vec![Error::invalid(&at, seconds, why)]);
    Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", errs))
}

/// Looks up the object the token is bound to and records it in `subject`.
fn bind(call: &ResourceCall<'_>, request: &Value, subject: &mut TokenSubject) -> Result<(), Status> {
    let Some(reference) = request.pointer("/spec/boundObjectRef").filter(|r| !r.is_null()) else {
        return Ok(());
    };
    let field = |key: &str| reference.get(key).and_then(Value::as_str).unwrap_or_default();
    let (kind, name, uid) = (field("kind"), field("name"), field("uid"));
    let resource = match (kind, field("apiVersion")) {
        ("Pod", "v1") => "pods",
        ("Secret", "v1") => "secrets",
        _ => {
            let gvk = format!("{}, Kind={kind}", field("apiVersion"));
            return Err(Status::bad_request(format!("cannot bind token to object of type {gvk}")));
        }
    };
    let registry = &call.api.registry;
    let object = registry
        .peek("", resource, &subject.namespace, name)
        .ok_or_else(|| Status::not_found("", resource, name))?;
    let found = metadata::text(&object, "uid");
    if !uid.is_empty() && uid != found {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict("", resource, name, why));
    }
    let bound = BoundObject { name: name.to_owned(), uid: found.to_owned() };
    if resource == "secrets" {
        subject.secret = Some(bound);
        return Ok(());
    }
    let account = object.pointer("/spec/serviceAccountName").and_then(Value::as_str).unwrap_or("default");
    if account != subject.name {
        return Err(Status::bad_request(format!(
            "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
            subject.name
        )));
    }
    let node = object.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
    if !node.is_empty() {
        let uid = registry.peek("", "nodes", "", node).map(|n| metadata::text(&n, "uid").to_owned());
        subject.node = Some(BoundObject { name: node.to_owned(), uid: uid.unwrap_or_default() });
    }
    subject.pod = Some(bound);
    Ok(())
}
