//! A client of one member: one connection with any number of concurrent calls.
//! Every call has a deadline.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::StreamExt;
use http::uri::PathAndQuery;
use prost::Message;
use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{Network, Purpose};
use tonic::codec::Streaming;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::messages::{
    CompactionRequest, Empty, PutRequest, PutResponse, RangeRequest, RangeResponse, StatusResponse,
    WatchCreateRequest, WatchRequest, WatchResponse, end_of,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Deadline of a call: longer than either side's own retries.
const DEADLINE: Duration = Duration::from_secs(12);
/// Deadline of a compaction, which waits until the backend is done.
const COMPACTION_DEADLINE: Duration = Duration::from_secs(120);

/// A client of one member.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    deadline: Duration,
}

impl Client {
    /// Creates a client with a connection of its own.
    pub fn new(network: Arc<dyn Network>, address: &str) -> Result<Self> {
        let options =
            ChannelOptions { purpose: Purpose::Peer, organization: None, connect_timeout: CONNECT_TIMEOUT };
        Ok(Self { channel: channel(network, address, options)?, deadline: DEADLINE })
    }

    /// The same connection with another deadline for each call.
    pub fn within(&self, deadline: Duration) -> Self {
        Self { channel: self.channel.clone(), deadline }
    }

    /// Writes durably and returns the revision.
    pub async fn put(&self, key: String, value: Bytes) -> Result<i64> {
        let request = PutRequest { key: key.into(), value };
        let response: PutResponse = self.call("/etcdserverpb.KV/Put", request).await?;
        Ok(response.header.unwrap_or_default().revision)
    }

    /// Reads one key, linearizable.
    pub async fn get(&self, key: String) -> Result<Option<Bytes>> {
        let request = RangeRequest { key: key.into(), ..RangeRequest::default() };
        let mut response: RangeResponse = self.call("/etcdserverpb.KV/Range", request).await?;
        Ok(response.kvs.pop().map(|found| found.value))
    }

    /// Returns the member's status.
    pub async fn status(&self) -> Result<StatusResponse> {
        Ok(self.call("/etcdserverpb.Maintenance/Status", Empty {}).await?)
    }

    /// Discards versions that were replaced before `revision`, and waits until they are gone.
    pub async fn compact(&self, revision: i64) -> Result<()> {
        let request = CompactionRequest { revision, physical: true };
        let patient = self.within(COMPACTION_DEADLINE);
        let _: Empty = patient.call("/etcdserverpb.KV/Compact", request).await?;
        Ok(())
    }

    /// Calls a method that neither side knows: measures the transport alone.
    pub async fn nothing(&self) -> Result<()> {
        let answer: Result<Empty, _> = self.call("/etcdserverpb.KV/Nothing", Empty {}).await;
        match answer {
            Err(status) if status.code() == tonic::Code::Unimplemented => Ok(()),
            other => bail!("a call that does not exist was answered: {other:?}"),
        }
    }

    /// Watches all keys with `prefix` from now on, on a stream of its own. The watch has
    /// started when this returns.
    pub async fn watch(&self, prefix: &str) -> Result<Streaming<WatchResponse>> {
        let create = WatchCreateRequest {
            key: Bytes::copy_from_slice(prefix.as_bytes()),
            range_end: end_of(prefix),
            start_revision: 0,
        };
        let request = WatchRequest { create_request: Some(create) };
        // The request stream stays open, because its end would end the watch.
        let requests = futures::stream::iter([request]).chain(futures::stream::pending());
        let starting = async {
            let mut grpc = tonic::client::Grpc::new(self.channel.clone());
            grpc.ready().await?;
            let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            let mut events = grpc.streaming(tonic::Request::new(requests), path, codec).await?.into_inner();
            let first = events.message().await?.context("the watch ended before it began")?;
            if !first.created || first.canceled {
                bail!("the watch was refused: {}", first.cancel_reason);
            }
            Ok(events)
        };
        tokio::time::timeout(self.deadline, starting).await.context("the watch did not start in time")?
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, tonic::Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let call = async {
            let mut grpc = tonic::client::Grpc::new(self.channel.clone());
            grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.unary(tonic::Request::new(request), PathAndQuery::from_static(path), codec).await
        };
        match tokio::time::timeout(self.deadline, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(tonic::Status::deadline_exceeded(format!("{path}: no answer in time"))),
        }
    }
}
