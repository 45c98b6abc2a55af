//! A Kubernetes API in memory, for tests of controllers and the scheduler: objects with revisions, watches,
//! patches, bindings and discovery, but neither validation nor defaults. `fake/store.rs` holds the objects;
//! this file handles HTTP.

mod store;

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

pub use store::FakeApi;
use store::{Refusal, Target};

type Answer = Response<BoxBody<Bytes, std::io::Error>>;

impl FakeApi {
    /// Creates a client of this API.
    pub fn client(self: &Arc<Self>) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, std::io::Error>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    async fn answer(self: Arc<Self>, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return failure(&Refusal::bad(&error.to_string())),
        };
        let path = parts.uri.path();
        let query = parts.uri.query().unwrap_or_default();
        if let Some(found) = self.discovery(path) {
            return document(StatusCode::OK, &found);
        }
        let Some(target) = Target::parse(path) else {
            return failure(&Refusal::not_found(path));
        };
        if query.contains("watch=true") {
            return self.watch(&target, query);
        }
        if parts.method == Method::GET && target.name.is_empty() {
            self.hold_up(&target.resource).await;
        }
        let sent: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let strategic = parts
            .headers
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/strategic-merge-patch"));
        let result = match parts.method {
            Method::GET if target.name.is_empty() => Ok(self.list(&target)),
            Method::GET => self.get(&target),
            Method::POST if target.subresource == "binding" => self.bind(&target, &sent),
            Method::POST => self.create(&target, sent),
            Method::PUT => self.replace(&target, sent),
            Method::PATCH => self.patch(&target, &sent, strategic),
            Method::DELETE if target.name.is_empty() => self.delete_all(&target),
            Method::DELETE => self.delete(&target, &sent),
            _ => Err(Refusal::bad("method")),
        };
        match result {
            Ok(object) => document(StatusCode::OK, &object),
            Err(error) => failure(&error),
        }
    }

    fn watch(self: Arc<Self>, target: &Target, query: &str) -> Answer {
        let from = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("resourceVersion="))
            .and_then(|revision| revision.parse().ok())
            .unwrap_or(0);
        let target = target.clone();
        let lines = futures::stream::unfold((self, target, from), |(api, target, from)| async move {
            let (events, revision) = api.events_after(&target, from).await;
            let text: String = events.iter().map(|event| format!("{event}\n")).collect();
            let frame = http_body::Frame::data(Bytes::from(text));
            Some((Ok::<_, std::io::Error>(frame), (api, target, revision)))
        });
        Response::new(BodyExt::boxed(StreamBody::new(lines.boxed().into_sync())))
    }

    /// Answers discovery requests; `None` for paths of objects.
    fn discovery(&self, path: &str) -> Option<Value> {
        let served = store::SERVED;
        let groups = || {
            let mut groups: Vec<&str> =
                served.iter().map(|kind| kind.group).filter(|g| !g.is_empty()).collect();
            groups.dedup();
            groups
        };
        match path.trim_start_matches('/').split('/').collect::<Vec<_>>().as_slice() {
            ["api"] => {
                Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}))
            }
            ["apis"] => {
                let list: Vec<_> = groups()
                    .into_iter()
                    .map(|group| {
                        let version = json!({"groupVersion": format!("{group}/v1"), "version": "v1"});
                        json!({"name": group, "versions": [version], "preferredVersion": version})
                    })
                    .collect();
                Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list}))
            }
            ["api", "v1"] => Some(store::resource_list("")),
            ["apis", group, "v1"] => Some(store::resource_list(group)),
            _ => None,
        }
    }
}

/// Makes a stream usable from several threads, one at a time.
trait IntoSync: futures::Stream + Sized {
    fn into_sync(self) -> SyncStream<Self> {
        SyncStream(std::sync::Mutex::new(Box::pin(self)))
    }
}
impl<S: futures::Stream> IntoSync for S {}

struct SyncStream<S>(std::sync::Mutex<std::pin::Pin<Box<S>>>);

impl<S: futures::Stream> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        let mut inner = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        inner.as_mut().poll_next(context)
    }
}

fn document(code: StatusCode, value: &Value) -> Answer {
    let bytes = Bytes::from(value.to_string());
    let body = http_body_util::Full::new(bytes).map_err(|never| match never {});
    let mut answer = Response::new(BodyExt::boxed(body));
    *answer.status_mut() = code;
    answer
}

fn failure(failure: &Refusal) -> Answer {
    let code = StatusCode::from_u16(failure.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": failure.code, "reason": failure.reason, "message": failure.message
    });
    document(code, &status)
}
