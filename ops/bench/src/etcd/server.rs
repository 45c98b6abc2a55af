//! Serves etcd's API from Ephor's store, a [`Consensus`]: `member.rs` runs it
//! for clients. Requests beyond what the bench measures are refused.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use consensus::{Consensus, ProposeOptions};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use prost::Message;
use storage::{Mutation, Object, Txn, TxnOutcome, Watch, WatchEvent, WatchItem};
use tonic::body::Body;
use tonic::codec::Streaming;
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::messages::{
    Empty, Event, KeyValue, PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader,
    StatusResponse, WatchCreateRequest, WatchRequest, WatchResponse, end_of,
};

const READ_DEADLINE: Duration = Duration::from_secs(10);
/// Maximum number of events in one message of a watch.
const BATCH_EVENTS: usize = 64;

/// Returns the gRPC services that serve `consensus`.
pub fn serve(consensus: &Arc<Consensus>) -> Routes {
    Routes::new(Kv(consensus.clone()))
        .add_service(Watches(consensus.clone()))
        .add_service(Maintenance(consensus.clone()))
}

/// Declares one service type, since tonic needs a type for each service name; all call [`answer`].
macro_rules! service {
    ($type:ident, $name:literal) => {
        #[derive(Clone)]
        struct $type(Arc<Consensus>);

        impl NamedService for $type {
            const NAME: &'static str = $name;
        }

        impl tonic::codegen::Service<http::Request<Body>> for $type {
            type Response = http::Response<Body>;
            type Error = Infallible;
            type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<Body>) -> Self::Future {
                Box::pin(answer(self.0.clone(), request).map(Ok))
            }
        }
    };
}

service!(Kv, "etcdserverpb.KV");
service!(Watches, "etcdserverpb.Watch");
service!(Maintenance, "etcdserverpb.Maintenance");

async fn answer(consensus: Arc<Consensus>, request: http::Request<Body>) -> http::Response<Body> {
    match request.uri().path() {
        "/etcdserverpb.KV/Put" => {
            unary(move |request: PutRequest| put(consensus.clone(), request), request).await
        }
        "/etcdserverpb.KV/Range" => {
            unary(move |request: RangeRequest| range(consensus.clone(), request), request).await
        }
        "/etcdserverpb.Maintenance/Status" => {
            unary(move |_: Empty| std::future::ready(Ok(status(&consensus))), request).await
        }
        "/etcdserverpb.Watch/Watch" => {
            let codec = ProstCodec::<WatchResponse, WatchRequest>::default();
            Grpc::new(codec).streaming(WatchCalls(consensus), request).await
        }
        _ => Status::unimplemented("no such call").into_http(),
    }
}

async fn unary<Q, A, F, R>(call: F, request: http::Request<Body>) -> http::Response<Body>
where
    Q: Message + Default + Send + Sync + 'static,
    A: Message + Send + Sync + 'static,
    F: FnMut(Q) -> R,
    R: Future<Output = Result<A, Status>> + Send + 'static,
{
    Grpc::new(ProstCodec::<A, Q>::default()).unary(Unary(call), request).await
}

struct Unary<F>(F);

impl<F, Q, A, R> UnaryService<Q> for Unary<F>
where
    F: FnMut(Q) -> R,
    R: Future<Output = Result<A, Status>> + Send + 'static,
{
    type Response = A;
    type Future = BoxFuture<'static, Result<Response<A>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let answer = (self.0)(request.into_inner());
        Box::pin(async move { answer.await.map(Response::new) })
    }
}

fn header(consensus: &Consensus, revision: u64) -> Option<ResponseHeader> {
    Some(ResponseHeader { member_id: consensus.node_id(), revision: revision.cast_signed() })
}

fn text(key: Bytes) -> Result<String, Status> {
    String::from_utf8(key.into()).map_err(|error| Status::invalid_argument(error.to_string()))
}

async fn put(consensus: Arc<Consensus>, request: PutRequest) -> Result<PutResponse, Status> {
    let mutations = vec![Mutation::Put { key: text(request.key)?, value: request.value }];
    let txn = Txn { preconditions: vec![], mutations };
    match consensus.propose(txn, ProposeOptions::default()).await {
        Ok(TxnOutcome::Committed { revisions }) => {
            let revision = revisions.last().copied().unwrap_or_default();
            Ok(PutResponse { header: header(&consensus, revision) })
        }
        Ok(other) => Err(Status::aborted(format!("{other:?}"))),
        Err(error) => Err(Status::unavailable(error.to_string())),
    }
}

async fn range(consensus: Arc<Consensus>, request: RangeRequest) -> Result<RangeResponse, Status> {
    if !request.range_end.is_empty() || request.revision != 0 {
        return Err(Status::unimplemented("one key, as it is now"));
    }
    let key = text(request.key)?;
    let barrier = consensus.read_barrier(READ_DEADLINE).await;
    barrier.map_err(|error| Status::unavailable(error.to_string()))?;
    let store = consensus.store();
    let kvs: Vec<_> = store.get(&key).map(|object| key_value(&object)).into_iter().collect();
    let count = i64::from(!kvs.is_empty());
    Ok(RangeResponse { header: header(&consensus, store.revision()), kvs, count })
}

fn status(consensus: &Consensus) -> StatusResponse {
    let (status, leadership) = (consensus.status(), *consensus.leadership().borrow());
    let me = consensus.node_id();
    StatusResponse {
        header: header(consensus, status.revision),
        leader: leadership.leader.unwrap_or_default(),
        raft_index: status.last_log_index,
        raft_term: status.term,
        raft_applied_index: status.applied_index,
        is_learner: !consensus.members().iter().any(|member| member.id == me && member.voter),
    }
}

struct WatchCalls(Arc<Consensus>);

impl StreamingService<WatchRequest> for WatchCalls {
    type Response = WatchResponse;
    type ResponseStream = BoxStream<'static, Result<WatchResponse, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        let consensus = self.0.clone();
        Box::pin(async move {
            let mut requests = request.into_inner();
            let create = requests.message().await?.and_then(|request| request.create_request);
            let create = create.ok_or_else(|| Status::unimplemented("one watch a stream"))?;
            let watch = start(&consensus, create)?;
            let created = WatchResponse {
                header: header(&consensus, consensus.store().revision()),
                created: true,
                ..WatchResponse::default()
            };
            let events = futures::stream::unfold((consensus, watch), batch);
            Ok(Response::new(futures::stream::iter([Ok(created)]).chain(events).boxed()))
        })
    }
}

fn start(consensus: &Consensus, create: WatchCreateRequest) -> Result<Watch, Status> {
    let prefix = text(create.key)?;
    if create.range_end != end_of(&prefix) || create.start_revision != 0 {
        return Err(Status::unimplemented("all keys with one prefix, from now on"));
    }
    let store = consensus.store();
    store.watch(&prefix, store.revision()).map_err(|error| Status::out_of_range(error.to_string()))
}

type Watching = (Arc<Consensus>, Watch);

/// Returns the next events, all that are available in one message, as etcd does.
async fn batch((consensus, mut watch): Watching) -> Option<(Result<WatchResponse, Status>, Watching)> {
    let mut events = Vec::new();
    let mut revision = 0;
    while events.len() < BATCH_EVENTS {
        let item = match watch.next().now_or_never() {
            Some(item) => item,
            None if events.is_empty() => watch.next().await,
            None => break,
        };
        match item {
            Ok(WatchItem::Event(event)) => {
                revision = event.revision;
                events.push(convert(&event));
            }
            Ok(WatchItem::Progress(_)) => {}
            Err(closed) => return Some((Err(Status::out_of_range(closed.to_string())), (consensus, watch))),
        }
    }
    let header = header(&consensus, revision);
    Some((Ok(WatchResponse { header, events, ..WatchResponse::default() }), (consensus, watch)))
}

fn convert(event: &WatchEvent) -> Event {
    match &event.object {
        Some(object) => Event { kind: Event::PUT, kv: Some(key_value(object)) },
        None => {
            let key = Bytes::copy_from_slice(event.key().as_bytes());
            let mod_revision = event.revision.cast_signed();
            Event { kind: Event::DELETE, kv: Some(KeyValue { key, mod_revision, ..KeyValue::default() }) }
        }
    }
}

fn key_value(object: &Object) -> KeyValue {
    KeyValue {
        key: Bytes::copy_from_slice(object.key.as_bytes()),
        create_revision: object.create_revision.cast_signed(),
        mod_revision: object.mod_revision.cast_signed(),
        value: object.value.clone(),
    }
}
