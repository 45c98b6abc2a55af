//! Access reviews: what the client may do (`SelfSubjectAccessReview`), what another user may do
//! (`SubjectAccessReview`), who the client is (`SelfSubjectReview`). They are answered and never stored.

use http::{Response, StatusCode};
use proto_api::field::ErrorList;
use proto_api::status::Status;
use serde_json::{Value, json};

use super::{ResourceCall, input};
use crate::authz::Attributes;
use crate::body::Body;
use crate::context::UserInfo;
use crate::options::WriteOptions;
use crate::registry::kinds::review::{self, AccessReview};

/// Answers a review.
///
/// # Errors
///
/// 400 and 422 for a bad review.
pub async fn review(call: &ResourceCall<'_>, body: Body) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    let bytes = input::read(body).await?;
    let options = WriteOptions::parse(&call.query, "CreateOptions")?;
    let mut answer = input::object(call, &bytes, call.kind.gvk, &options.field_validation)?;
    match call.kind.resource {
        "selfsubjectaccessreviews" => {
            validate(call, &answer, AccessReview::Own)?;
            access(call, &call.ctx.user, &mut answer);
        }
        "subjectaccessreviews" => {
            validate(call, &answer, AccessReview::Any)?;
            let user = user_of(&answer);
            access(call, &user, &mut answer);
        }
        "localsubjectaccessreviews" => {
            validate(call, &answer, AccessReview::Local)?;
            let user = user_of(&answer);
            access(call, &user, &mut answer);
        }
        "selfsubjectreviews" => {
            let now = call.api.registry.now();
            answer["status"]["userInfo"] = user_info(call);
            crate::registry::metadata::of(&mut answer)
                .insert("creationTimestamp".to_owned(), Value::from(now));
        }
        _ => return Err(Status::no_such_path()),
    }
    crate::registry::metadata::of(&mut answer);
    Ok(crate::respond::encode(format.representation.encoding, StatusCode::CREATED, &answer))
}

fn validate(call: &ResourceCall<'_>, review: &Value, kind: AccessReview) -> Result<(), Status> {
    let mut errs = ErrorList::default();
    review::validate(review, kind, &mut errs);
    if errs.is_empty() { Ok(()) } else { Err(Status::invalid(call.kind.gvk.group, "", "", errs)) }
}

/// Returns the user a review asks about.
fn user_of(review: &Value) -> UserInfo {
    let spec = review.get("spec").cloned().unwrap_or_default();
    let texts = |v: Option<&Value>| -> Vec<String> {
        let list = v.and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let extra = spec.get("extra").and_then(Value::as_object).into_iter().flatten();
    UserInfo {
        name: text(&spec, "user").to_owned(),
        uid: text(&spec, "uid").to_owned(),
        groups: texts(spec.get("groups")),
        extra: extra.map(|(key, values)| (key.clone(), texts(Some(values)))).collect(),
    }
}

fn user_info(call: &ResourceCall<'_>) -> Value {
    let user = &call.ctx.user;
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = Value::from(user.uid.as_str());
    }
    if !user.groups.is_empty() {
        info["groups"] = Value::from(user.groups.clone());
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn access(call: &ResourceCall<'_>, user: &UserInfo, review: &mut Value) {
    let spec = review.get("spec").cloned().unwrap_or_default();
    let present = |key: &str| spec.get(key).filter(|v| !v.is_null());
    let attributes = match (present("resourceAttributes"), present("nonResourceAttributes")) {
        (Some(resource), _) => resource_attributes(user, resource),
        (None, path) => Attributes {
            user,
            verb: path.map_or("", |p| text(p, "verb")),
            path: path.map_or("", |p| text(p, "path")),
            is_resource: false,
            ..Attributes::of(call.ctx)
        },
    };
    let decision = call.api.authorizer.authorize(&attributes, &call.api.registry);
    review["status"]["allowed"] = Value::from(decision.allowed);
    if !decision.reason.is_empty() {
        review["status"]["reason"] = Value::from(decision.reason);
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn resource_attributes<'a>(user: &'a UserInfo, resource: &'a Value) -> Attributes<'a> {
    Attributes {
        user,
        verb: text(resource, "verb"),
        group: text(resource, "group"),
        resource: text(resource, "resource"),
        subresource: text(resource, "subresource"),
        namespace: text(resource, "namespace"),
        name: text(resource, "name"),
        path: "",
        is_resource: true,
        field_selector: "",
    }
}
