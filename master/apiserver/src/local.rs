//! The in-process client: kube-rs over a tower service that sends requests through the same filter chain as
//! all others, with an identity and a fencing term instead of credentials. Scheduler, controllers and
//! `master/node` use it. As client-go does, it waits and sends again what was refused because the server has
//! too much to do, so that no caller adds to that.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use proto_api::status::Status;
use tower::Service;

use crate::api::Api;
use crate::body::{self, Body};
use crate::chain;
use crate::context::{LocalIdentity, UserInfo};

/// Maximum number of times that a refused request is sent again, as in client-go.
const RETRIES: usize = 10;

/// A tower service that sends requests of one in-process identity into the filter chain.
#[derive(Clone)]
pub struct LocalService {
    api: Arc<Api>,
    identity: LocalIdentity,
}

impl LocalService {
    /// Returns a service that acts as `user`; its writes are refused once the term `fence` has passed.
    pub fn new(api: Arc<Api>, user: UserInfo, fence: Option<u64>) -> Self {
        Self { api, identity: LocalIdentity { user, fence } }
    }
}

impl<B> Service<Request<B>> for LocalService
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<body::BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (parts, body) = request.into_parts();
        // Boxed before it is awaited, so that the future is `Send` whatever the type of the body is.
        let body = body::boxed(body);
        let (api, identity) = (Arc::clone(&self.api), self.identity.clone());
        Box::pin(async move {
            let body = match collect(body).await {
                Ok(body) => body,
                Err(error) => return Ok(body::status_response(&Status::bad_request(error.to_string()))),
            };
            let mut left = RETRIES;
            loop {
                let mut request = Request::from_parts(parts.clone(), body::full(body.clone()));
                request.extensions_mut().insert(identity.clone());
                let response = chain::handle(Arc::clone(&api), request).await;
                match retry_after(&response).filter(|_| left > 0) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Ok(response),
                }
                left -= 1;
            }
        })
    }
}

/// Collects a body. Boxed for the same reason as in `handlers/input.rs`.
fn collect(body: Body) -> Pin<Box<dyn Future<Output = Result<Bytes, body::BoxError>> + Send>> {
    Box::pin(async move { Ok(body.collect().await?.to_bytes()) })
}

/// Returns how long to wait before a request is sent again; `None` where it was not refused because of too
/// many requests. A 503 is returned at once: a new leader must notice soon when the quorum is back.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    if response.status() != StatusCode::TOO_MANY_REQUESTS {
        return None;
    }
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}
