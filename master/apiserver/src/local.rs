//! The in-process client: kube-rs over a tower service that sends requests through the same filter chain as
//! all others, with an identity and a fencing term instead of credentials. Scheduler, controllers and
//! `master/node` use it.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use http::{Request, Response};
use tower::Service;

use crate::api::Api;
use crate::body::{self, Body};
use crate::chain;
use crate::context::{LocalIdentity, UserInfo};

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
        let mut request = request.map(body::boxed);
        request.extensions_mut().insert(self.identity.clone());
        let api = Arc::clone(&self.api);
        Box::pin(async move { Ok(chain::handle(api, request).await) })
    }
}
