//! Requests that are forwarded: logs, exec, attach and port-forward to the node of a pod, and the proxies to
//! nodes, pods and services. `location.rs` and `backend.rs` find the destination, `forward.rs` copies the
//! bytes.

mod backend;
mod forward;
mod location;
mod rewrite;

use std::sync::Arc;

use http::{Request, Response};
use proto_api::kinds::Kind;
use proto_api::status::Status;

use crate::api::Api;
use crate::body::Body;
use crate::context::Context;
use crate::options::Query;

/// Carries out a request of a streaming or proxy subresource.
///
/// # Errors
///
/// 400 and 404 where the destination cannot be determined, 405 for a method the subresource does not have,
/// 500 and 503 where the destination cannot be reached.
pub async fn handle(
    api: &Arc<Api>,
    ctx: &Context,
    kind: &'static Kind,
    request: &mut Request<Body>,
) -> Result<Response<Body>, Status> {
    let query = Query::parse(&ctx.query);
    let method = request.method().clone();
    match (kind.resource, ctx.info.subresource.as_str()) {
        ("pods", "log") => {
            if method != http::Method::GET {
                return Err(Status::method_not_allowed());
            }
            let Some(target) = location::log(api, ctx, &query).await? else {
                return Ok(Response::new(crate::body::empty()));
            };
            forward::log(api, &target, &ctx.info.name).await
        }
        ("pods", "exec" | "attach" | "portforward") => {
            if !matches!(method, http::Method::GET | http::Method::POST) {
                return Err(Status::method_not_allowed());
            }
            let target = location::stream(api, ctx, &query).await?;
            forward::stream(api, &target, request).await
        }
        ("pods" | "services" | "nodes", "proxy") => {
            let (backend, path) = backend::locate(api, ctx).await?;
            forward::proxy(api, ctx, &backend, path, request).await
        }
        _ => Err(Status::no_such_path()),
    }
}
