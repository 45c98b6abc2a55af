//! The verbs `get`, `list` and `watch`.

use http::Response;
use proto_api::status::Status;

use super::ResourceCall;
use crate::authz::Attributes;
use crate::body::Body;
use crate::negotiate::Encoding;
use crate::options::ListOptions;
use crate::registry::object;
use crate::registry::selection::Selection;
use crate::watch;

/// Answers with one object.
///
/// # Errors
///
/// 403 for a pod of another node, 404, 406, 503.
pub async fn get(call: &ResourceCall<'_>) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    let options =
        ListOptions { resource_version: call.query.text("resourceVersion").to_owned(), ..Default::default() };
    let object =
        call.api.registry.get(call.ctx, call.target(), &call.ctx.info.name, options.version()?).await?;
    if call.ctx.user.node_name().is_some() {
        let found = object::value(&object, object.mod_revision)?;
        call.api.authorizer.check_found(&Attributes::of(call.ctx), &found)?;
    }
    Ok(format.stored(&object))
}

/// Answers with a list, or with one page of it.
///
/// # Errors
///
/// 400, 406, 410, 503, 504.
pub async fn list(call: &ResourceCall<'_>) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    let options = ListOptions::parse(&call.query, false)?;
    let selection = Selection::parse(call.target(), &options.label_selector, &options.field_selector)?;
    let page = call.api.registry.list(call.ctx, call.target(), &selection, &options).await?;
    Ok(format.list(call.api, page, call.ctx))
}

/// Starts a watch of a collection, or of one object through the old `/watch/` path.
///
/// # Errors
///
/// 400, 406, 503, 504.
pub async fn watch(call: &ResourceCall<'_>) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    if format.representation.encoding != Encoding::Json {
        return Err(Status::not_acceptable(&["application/json", "application/vnd.kubernetes.protobuf"]));
    }
    let options = ListOptions::parse(&call.query, true)?;
    let name = &call.ctx.info.name;
    // Both the name and the field selector must match: authorization may have relied on either.
    let fields = match (name.is_empty(), options.field_selector.is_empty()) {
        (true, _) => options.field_selector.clone(),
        (false, true) => format!("metadata.name={name}"),
        (false, false) => format!("{},metadata.name={name}", options.field_selector),
    };
    let selection = Selection::parse(call.target(), &options.label_selector, &fields)?;
    let request = watch::WatchParameters {
        namespace: call.target().namespace.to_owned(),
        kind: call.kind,
        selection,
        options,
        representation: format.representation,
        include: format.include,
    };
    watch::start(call.api, call.ctx, request).await
}
