//! The node's HTTPS server on port 10250, like kubelet's: logs, exec, attach, port-forward, pods, stats. Only
//! clients with a masters' certificate signed by the cluster CA are served, for as long as it is valid.

mod auth;
mod connection;
mod logs;
mod metrics;
mod pods;
mod stats;
mod streaming;
pub mod tls;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::Error;
use crate::context::Context;

const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A response body.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Binds the server's listening address.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|e| Error::Server(format!("cannot listen on {address}: {e}")))
}

/// Serves connections until `shutdown`.
pub async fn run(context: Arc<Context>, listener: TcpListener, shutdown: CancellationToken) {
    if let Ok(address) = listener.local_addr() {
        info!(%address, "serving");
    }
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            // Most likely out of file descriptors: wait until others are closed.
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let (context, shutdown) = (context.clone(), shutdown.clone());
        let tls = context.config.serving_tls.borrow().clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = connection::serve(tls, stream, peer, move |request| route(context.clone(), request)) => {}
            }
        });
    }
}

async fn route(context: Arc<Context>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let query = Query::of(&request);
    let get = request.method() == Method::GET;
    debug!(method = %request.method(), path, "request");
    match parts.as_slice() {
        ["healthz"] if get => text(StatusCode::OK, "ok"),
        ["pods"] if get => pods::all(&context),
        ["runningpods"] if get => pods::running(&context).await,
        ["stats", "summary"] if get => stats::summary(&context).await,
        ["metrics"] if get => metrics::serve(&context).await,
        ["metrics", "resource"] if get => stats::metrics(&context).await,
        ["containerLogs", namespace, pod, container] if get => {
            logs::serve(context.clone(), namespace, pod, container, &query).await
        }
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            streaming::exec(&context, request, namespace, pod, container, &query).await
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            streaming::attach(&context, request, namespace, pod, container, &query).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            streaming::port_forward(&context, request, namespace, pod, &query).await
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// Query parameters by name, each with all its values.
pub(crate) struct Query(BTreeMap<String, Vec<String>>);

impl Query {
    fn of(request: &Request<Incoming>) -> Self {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in request.uri().query().unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            values.entry(decode(name)).or_default().push(decode(value));
        }
        Self(values)
    }

    pub(crate) fn all(&self, name: &str) -> &[String] {
        self.0.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    pub(crate) fn first(&self, name: &str) -> Option<&str> {
        self.all(name).first().map(String::as_str)
    }

    /// Returns whether the first value under any of these names is `1` or `true`.
    pub(crate) fn flag(&self, names: &[&str]) -> bool {
        names.iter().any(|name| matches!(self.first(name), Some("1" | "true")))
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped = tail
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (first, escaped) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Builds a plain-text response.
pub(crate) fn text(status: StatusCode, message: impl Into<Bytes>) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", message.into())
}

/// Builds a JSON response.
pub(crate) fn json(value: &serde_json::Value) -> Response<Body> {
    answer(StatusCode::OK, "application/json", Bytes::from(value.to_string()))
}

fn answer(status: StatusCode, content_type: &'static str, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(bytes).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_decoded() {
        assert_eq!(decode("sh+-c%20echo%2Fx%zz"), "sh -c echo/x%zz");
    }
}
