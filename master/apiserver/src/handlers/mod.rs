//! Handlers, which carry out a request once it is authorized; one file per verb or subresource. `chain.rs`
//! calls [`dispatch`].

pub mod access;
pub mod binding;
pub mod create;
pub mod delete;
pub mod input;
pub mod list;
pub mod nonresource;
pub mod scale;
pub mod token;
pub mod update;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::{Request, Response};
use proto_api::kinds::{self, Kind};
use proto_api::status::Status;

use crate::api::Api;
use crate::body::{self, Body};
use crate::context::Context;
use crate::negotiate::{self, Shape};
use crate::options::Query;
use crate::proxy;
use crate::registry::Target;
use crate::respond::{IncludeObject, ResponseFormat};

/// A request about objects of one kind, as handlers receive it.
pub struct ResourceCall<'a> {
    /// State that all requests share.
    pub api: &'a Arc<Api>,
    /// User, target, deadline and warnings of the request.
    pub ctx: &'a Context,
    /// Kind of the objects.
    pub kind: &'static Kind,
    /// The decoded query.
    pub query: Query,
    /// Method, URL and headers of the request; its body is passed to the handler separately.
    pub head: http::request::Parts,
}

impl<'a> ResourceCall<'a> {
    /// Returns the kind and namespace the path names.
    pub fn target(&self) -> Target<'a> {
        // For a Namespace, RequestInfo's namespace is its own name; `Target::new` ignores that for
        // cluster-scoped kinds.
        Target::new(self.kind, &self.ctx.info.namespace)
    }

    /// Returns the value of a header; `None` where it is absent or no text.
    pub fn header(&self, name: http::header::HeaderName) -> Option<&str> {
        self.head.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// Returns the encoding and form (object, Table, metadata alone) in which the client wants the answer.
    ///
    /// # Errors
    ///
    /// 406, and 400 for a bad `includeObject`.
    pub fn format(&self) -> Result<ResponseFormat<'a>, Status> {
        let accept: Vec<&str> =
            self.head.headers.get_all(http::header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
        // Reviews are never stored: they cannot be shown as a Table or as metadata alone.
        let stored = !matches!(self.kind.gvk.group, "authorization.k8s.io" | "authentication.k8s.io");
        let representation = negotiate::negotiate(Some(&accept.join(",")), stored)?;
        let include = if representation.shape == Shape::Table {
            IncludeObject::parse(self.query.text("includeObject"))?
        } else {
            IncludeObject::Metadata
        };
        let now =
            jiff::Timestamp::try_from(self.api.registry.clock.now()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        let (rows, monotonic) = (&self.api.rows, self.api.registry.clock.monotonic());
        rows.tidy(monotonic);
        Ok(ResponseFormat { target: self.target(), representation, include, now, rows, monotonic })
    }
}

/// Future of a handler; boxed, so that the chain's future stays small and its type simple.
type HandlerFuture<'a> = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send + 'a>>;

/// Carries out an authorized request about a resource and returns its answer.
pub async fn dispatch(api: &Arc<Api>, ctx: &Context, request: Request<Body>) -> Response<Body> {
    if !ctx.info.is_resource {
        return nonresource::handle(api, ctx, request.headers()).await;
    }
    let info = &ctx.info;
    let Some(kind) = kinds::by_resource(&info.group, &info.version, &info.resource) else {
        return nonresource::unknown(&info.group);
    };
    let handled: HandlerFuture<'_> = Box::pin(handle(api, ctx, kind, request));
    let handled = handled.await;
    if kind.gvk.group.is_empty() && kind.resource == "endpoints" && was_served(&handled) {
        ctx.warn("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice");
    }
    match handled {
        Ok(response) => response,
        Err(status) => body::status_response(&status),
    }
}

/// Returns whether a request reached its handler; deprecation warnings are left out where routing or
/// negotiation failed.
fn was_served(handled: &Result<Response<Body>, Status>) -> bool {
    match handled {
        Ok(_) => true,
        Err(status) => {
            let routed = status.code != 404 || status.details.as_ref().is_some_and(|d| !d.kind.is_empty());
            routed && !matches!(status.code, 405 | 406 | 415)
        }
    }
}

/// Returns whether a verb may be used on a collection (`collection` is true) or on one object (false).
fn fits(verb: &str, collection: bool) -> bool {
    match verb {
        "create" | "list" | "deletecollection" => collection,
        "update" | "patch" | "delete" | "get" => !collection,
        _ => true,
    }
}

async fn handle(
    api: &Arc<Api>,
    ctx: &Context,
    kind: &'static Kind,
    mut request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let info = &ctx.info;
    if !info.subresource.is_empty() {
        let Some(sub) = kind.subresource(&info.subresource) else { return Err(Status::no_such_path()) };
        if sub.name == "proxy" || matches!(sub.name, "log" | "exec" | "attach" | "portforward") {
            return proxy::handle(api, ctx, kind, &mut request).await;
        }
        if !sub.verbs.contains(&info.verb.as_str()) {
            return Err(Status::method_not_allowed());
        }
    } else if !kind.has_verb(&info.verb) || !fits(&info.verb, info.name.is_empty()) {
        return Err(Status::method_not_allowed());
    }
    let (head, body) = request.into_parts();
    let call = ResourceCall { api, ctx, kind, query: Query::parse(&ctx.query), head };
    match (info.subresource.as_str(), info.verb.as_str()) {
        ("" | "status" | "ephemeralcontainers" | "resize", "get") => list::get(&call).await,
        ("", "list") => list::list(&call).await,
        ("", "watch") => list::watch(&call).await,
        ("", "create") => match (kind.gvk.group, kind.resource) {
            ("", "bindings") => binding::bind(&call, body).await,
            ("authorization.k8s.io" | "authentication.k8s.io", _) => access::review(&call, body).await,
            _ => create::create(&call, body).await,
        },
        ("scale", verb) => scale::handle(&call, verb, body).await,
        (sub, "update") => update::put(&call, sub, body).await,
        (sub, "patch") => update::patch(&call, sub, body).await,
        ("", "delete") => delete::delete(&call, body).await,
        ("", "deletecollection") => delete::delete_collection(&call, body).await,
        ("binding", "create") => binding::bind(&call, body).await,
        ("eviction", "create") => delete::evict(&call, body).await,
        ("token", "create") => token::create(&call, body).await,
        _ => Err(Status::method_not_allowed()),
    }
}
