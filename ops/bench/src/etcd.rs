//! The one call of etcd's KV service that is measured, as client and, so that
//! both sides are asked in the same way, as server for Ephor's store.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use anyhow::Result;
use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{Network, Purpose};
use tonic::codegen::Service;
use tonic::service::Routes;
use tonic::transport::Channel;

/// etcdserverpb.PutRequest, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutRequest {
    /// The key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// The value.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// etcdserverpb.PutResponse, of which nothing is used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutResponse {}

/// A client of one member.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// A client over a connection of its own.
    pub fn new(network: Arc<dyn Network>, address: &str) -> Result<Self> {
        let options = ChannelOptions {
            purpose: Purpose::Peer,
            organization: None,
            connect_timeout: std::time::Duration::from_secs(5),
        };
        Ok(Self { channel: channel(network, address, options)? })
    }

    /// Writes durably.
    pub async fn put(&self, key: String, value: Vec<u8>) -> Result<()> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await?;
        let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
        let request = tonic::Request::new(PutRequest { key: key.into_bytes(), value });
        let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
        grpc.unary(request, path, codec).await?;
        Ok(())
    }
}

/// A server of the call.
pub fn server<F, R>(put: F) -> Routes
where
    F: Fn(PutRequest) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<PutResponse, tonic::Status>> + Send + 'static,
{
    Routes::new(Kv { put })
}

#[derive(Clone)]
struct Kv<F> {
    put: F,
}

impl<F> tonic::server::NamedService for Kv<F> {
    const NAME: &'static str = "etcdserverpb.KV";
}

impl<F, R> Service<http::Request<tonic::body::Body>> for Kv<F>
where
    F: Fn(PutRequest) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<PutResponse, tonic::Status>> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let put = Put(self.put.clone());
        Box::pin(async move {
            if !request.uri().path().ends_with("/Put") {
                let mut response = http::Response::new(tonic::body::Body::empty());
                response.headers_mut().insert("grpc-status", http::HeaderValue::from_static("12"));
                return Ok(response);
            }
            let codec = tonic_prost::ProstCodec::<PutResponse, PutRequest>::default();
            Ok(tonic::server::Grpc::new(codec).unary(put, request).await)
        })
    }
}

struct Put<F>(F);

impl<F, R> tonic::server::UnaryService<PutRequest> for Put<F>
where
    F: Fn(PutRequest) -> R,
    R: Future<Output = Result<PutResponse, tonic::Status>> + Send + 'static,
{
    type Response = PutResponse;
    type Future = futures::future::BoxFuture<'static, Result<tonic::Response<PutResponse>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<PutRequest>) -> Self::Future {
        let answer = (self.0)(request.into_inner());
        Box::pin(async move { Ok(tonic::Response::new(answer.await?)) })
    }
}
