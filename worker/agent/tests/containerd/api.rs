//! As much of an API server as one agent needs: pods that can be watched and patched, and polite answers to everything else.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{Notify, broadcast};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::BroadcastStream;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

struct State {
    pods: BTreeMap<String, Value>,
    version: u64,
    requests: Vec<String>,
    events: broadcast::Sender<Bytes>,
}

#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl Default for FakeApi {
    fn default() -> Self {
        let state = State {
            pods: BTreeMap::new(),
            version: 1,
            requests: Vec::new(),
            events: broadcast::Sender::new(1024),
        };
        Self { state: Arc::new(Mutex::new(state)), changed: Arc::new(Notify::new()) }
    }
}

impl FakeApi {
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while locked")
    }

    fn change(&self, name: &str, type_: &str, edit: impl FnOnce(&mut Value)) -> Option<Value> {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version.to_string();
        let pod = state.pods.get_mut(name)?;
        edit(pod);
        pod["metadata"]["resourceVersion"] = json!(version);
        let pod = pod.clone();
        if type_ == "DELETED" {
            state.pods.remove(name);
        }
        let line = json!({"type": type_, "object": pod}).to_string() + "\n";
        // Nobody may be watching at the moment.
        let _ = state.events.send(Bytes::from(line));
        self.changed.notify_waiters();
        Some(pod)
    }

    pub fn put_pod(&self, pod: Value) {
        let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
        self.lock().pods.insert(name.clone(), pod);
        self.change(&name, "ADDED", |_| {});
    }

    pub fn touch_pod(&self, name: &str) {
        self.change(name, "MODIFIED", |pod| pod["metadata"]["annotations"] = json!({"touched": "yes"}));
    }

    pub fn delete_pod_gracefully(&self, name: &str, seconds: u64) {
        self.change(name, "MODIFIED", |pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(seconds);
        });
    }

    pub async fn wait_for_pod(
        &self,
        name: &str,
        limit: Duration,
        test: impl Fn(Option<&Value>) -> bool,
    ) -> Option<Value> {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let pod = self.lock().pods.get(name).cloned();
                if test(pod.as_ref()) {
                    return pod;
                }
                changed.await;
            }
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(pod) => pod,
            Err(_) => panic!("not in time: {:#}", self.lock().pods.get(name).cloned().unwrap_or_default()),
        }
    }

    pub async fn wait_for_request(&self, request: &str, limit: Duration) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.lock().requests.iter().any(|seen| seen.starts_with(request)) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(limit, wait).await.unwrap_or_else(|_| panic!("no {request} in time"));
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let path = parts.uri.path().to_owned();
        let watch = parts.uri.query().unwrap_or_default().contains("watch=true");
        self.lock().requests.push(format!("{} {path}", parts.method));
        self.changed.notify_waiters();
        let pod = path.strip_prefix("/api/v1/namespaces/default/pods/");
        match (&parts.method, path.as_str(), pod) {
            (&Method::GET, "/api/v1/pods", _) if watch => self.watch_pods(),
            (&Method::GET, "/api/v1/pods", _) => {
                let state = self.lock();
                let items: Vec<Value> = state.pods.values().cloned().collect();
                let version = state.version.to_string();
                ok(
                    &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}),
                )
            }
            (&Method::GET, _, _) if watch => stream(tokio_stream::pending()),
            (&Method::GET, _, _) => ok(
                &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []}),
            ),
            (&Method::PATCH, _, Some(pod)) => self.patch_status(pod.trim_end_matches("/status"), &body),
            (&Method::DELETE, _, Some(name)) => match self.change(name, "DELETED", |_| {}) {
                Some(pod) => ok(&pod),
                None => not_found(),
            },
            (&Method::PATCH, path, _) if path.contains("/leases/") => not_found(),
            (&Method::PATCH, _, _) => ok(&json!({"metadata": {"name": "node1"}})),
            _ => ok(&serde_json::from_slice(&body).unwrap_or_default()),
        }
    }

    fn watch_pods(&self) -> Answer {
        let events = self.lock().events.subscribe();
        stream(BroadcastStream::new(events).filter_map(Result::ok))
    }

    /// Merges as a strategic merge patch does: conditions by type, everything else by replacement.
    fn patch_status(&self, name: &str, patch: &[u8]) -> Answer {
        let patch: Value = serde_json::from_slice(patch).expect("a JSON patch");
        let patched = self.change(name, "MODIFIED", |pod| {
            assert_eq!(patch["metadata"]["uid"], pod["metadata"]["uid"]);
            for (key, value) in patch["status"].as_object().into_iter().flatten() {
                if key == "conditions" {
                    merge_conditions(&mut pod["status"]["conditions"], value);
                } else {
                    pod["status"][key] = value.clone();
                }
            }
        });
        patched.map_or_else(not_found, |pod| ok(&pod))
    }
}

fn merge_conditions(into: &mut Value, from: &Value) {
    let mut by_type: BTreeMap<String, Value> = BTreeMap::new();
    for condition in into.as_array().into_iter().flatten().chain(from.as_array().into_iter().flatten()) {
        by_type.insert(condition["type"].to_string(), condition.clone());
    }
    *into = by_type.into_values().collect();
}

fn ok(value: &Value) -> Answer {
    Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync())
}

fn not_found() -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "not found",
                        "reason": "NotFound", "code": 404});
    let mut answer = ok(&status);
    *answer.status_mut() = StatusCode::NOT_FOUND;
    answer
}

fn stream(lines: impl tokio_stream::Stream<Item = Bytes> + Send + 'static) -> Answer {
    Response::new(StreamBody::new(lines.map(|line| Ok(Frame::data(line)))).boxed_unsync())
}
