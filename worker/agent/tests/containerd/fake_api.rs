//! A fake API server with as much as one agent needs: objects that can be watched, pods that can be patched,
//! tokens, and valid answers to everything else. A test can make it unreachable.

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
use tokio::sync::{Notify, broadcast, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::BroadcastStream;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

struct State {
    pods: BTreeMap<String, Value>,
    /// Objects of other kinds, by collection path and name.
    objects: BTreeMap<(String, String), Value>,
    version: u64,
    requests: Vec<String>,
    /// Watch events as lines, each with the path of its collection.
    events: broadcast::Sender<(String, Bytes)>,
    /// Reason and message of each Event object written.
    notes: Vec<(String, String)>,
    /// Newest version of the Node object.
    node: Value,
    token_seconds: i64,
    /// Number of coming requests whose senders panic, by the beginning of `METHOD PATH`.
    panics: BTreeMap<String, usize>,
}

const PODS: &str = "/api/v1/pods";

/// A handle on the fake API server; clones share its state. Each test uses only some of its methods.
#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    /// Whether the server is unreachable: nothing answers and watches are cut off.
    away: watch::Sender<bool>,
}

impl Default for FakeApi {
    fn default() -> Self {
        let state = State {
            pods: BTreeMap::new(),
            version: 1,
            requests: Vec::new(),
            objects: BTreeMap::new(),
            events: broadcast::Sender::new(1024),
            notes: Vec::new(),
            node: Value::Null,
            token_seconds: 3600,
            panics: BTreeMap::new(),
        };
        let (changed, away) = (Arc::new(Notify::new()), watch::Sender::new(false));
        Self { state: Arc::new(Mutex::new(state)), changed, away }
    }
}

impl FakeApi {
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                if *api.away.borrow() {
                    return Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
                }
                // This future is polled by the task of the agent that sends the request.
                assert!(!api.panics(&format!("{} {}", request.method(), request.uri().path())), "injected");
                Ok(api.answer(request).await)
            }
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
        // Sending fails if nobody is watching, which is no error.
        let _ = state.events.send((PODS.to_owned(), Bytes::from(line)));
        self.changed.notify_waiters();
        Some(pod)
    }

    /// Makes the API server unreachable, or reachable again.
    pub fn set_away(&self, away: bool) {
        self.away.send_replace(away);
    }

    /// Makes the tasks panic that send the next `count` requests beginning with `request` (`METHOD PATH`).
    pub fn panic_at(&self, request: &str, count: usize) {
        self.lock().panics.insert(request.to_owned(), count);
    }

    /// Returns how many of the panics asked for at `request` are left.
    pub fn panics_left(&self, request: &str) -> usize {
        self.lock().panics.get(request).copied().unwrap_or(0)
    }

    fn panics(&self, request: &str) -> bool {
        let mut state = self.lock();
        let injected =
            state.panics.iter_mut().find(|(begin, left)| **left > 0 && request.starts_with(*begin));
        injected.map(|(_, left)| *left -= 1).is_some()
    }

    /// Sets the lifetime of tokens.
    pub fn set_token_seconds(&self, seconds: i64) {
        self.lock().token_seconds = seconds;
    }

    /// Sets an object in a collection (`/api/v1/namespaces/default/configmaps`), or deletes it if `object` is
    /// `None`.
    pub fn put_object(&self, collection: &str, name: &str, object: Option<Value>) {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version.to_string();
        let key = (collection.to_owned(), name.to_owned());
        let (type_, object) = match object {
            Some(mut object) => {
                object["metadata"] =
                    json!({"name": name, "namespace": "default", "resourceVersion": version});
                state.objects.insert(key, object.clone());
                ("MODIFIED", object)
            }
            None => ("DELETED", state.objects.remove(&key).expect("an object to delete")),
        };
        let line = json!({"type": type_, "object": object}).to_string() + "\n";
        let _ = state.events.send((collection.to_owned(), Bytes::from(line)));
    }

    /// Returns reason and message of each Event object written.
    pub fn notes(&self) -> Vec<(String, String)> {
        self.lock().notes.clone()
    }

    pub fn pod(&self, name: &str) -> Value {
        self.lock().pods.get(name).cloned().unwrap_or_default()
    }

    /// Returns the newest version of the Node object.
    pub fn node(&self) -> Value {
        self.lock().node.clone()
    }

    pub fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    /// Waits until `test` holds, for at most `limit`; `what` names the condition in the failure.
    pub async fn wait(&self, what: &str, limit: Duration, test: impl Fn(&Self) -> bool) {
        let wait = async {
            while !test(self) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let outcome = tokio::time::timeout(limit, wait).await;
        assert!(
            outcome.is_ok(),
            "not in time: {what}; pods: {:#?}, events: {:#?}",
            self.lock().pods,
            self.notes()
        );
    }

    pub fn put_pod(&self, pod: Value) {
        let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
        self.lock().pods.insert(name.clone(), pod);
        self.change(&name, "ADDED", |_| {});
    }

    pub fn touch_pod(&self, name: &str) {
        self.change(name, "MODIFIED", |pod| pod["metadata"]["annotations"] = json!({"touched": "yes"}));
    }

    /// Deletes the object of a pod at once, as `kubectl delete --force` does.
    pub fn delete_pod_by_force(&self, name: &str) {
        self.change(name, "DELETED", |_| {});
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
        let query = parts.uri.query().unwrap_or_default();
        let watch = query.contains("watch=true");
        let named = query.split('&').find_map(|part| part.strip_prefix("fieldSelector=metadata.name%3D"));
        self.lock().requests.push(format!("{} {path}", parts.method));
        self.changed.notify_waiters();
        let pod = path.strip_prefix("/api/v1/namespaces/default/pods/");
        match (&parts.method, path.as_str(), pod) {
            (&Method::GET, PODS, _) if watch => self.watch(PODS),
            (&Method::GET, "/api/v1/pods", _) => {
                let state = self.lock();
                let items: Vec<Value> = state.pods.values().cloned().collect();
                let version = state.version.to_string();
                ok(
                    &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}),
                )
            }
            (&Method::GET, path, _) if watch => self.watch(path),
            (&Method::GET, path, _) => self.list_or_get(path, named),
            (&Method::POST, path, _) if path.ends_with("/token") => self.token(),
            (&Method::POST, path, _) if path.ends_with("/events") => self.note(&body),
            (&Method::PATCH, "/api/v1/nodes/node1/status", _) | (&Method::POST, "/api/v1/nodes", _) => {
                let mut node: Value = serde_json::from_slice(&body).unwrap_or_default();
                node["metadata"]["name"] = json!("node1");
                {
                    let mut state = self.lock();
                    state.node = node.clone();
                    state.objects.insert(("/api/v1/nodes".to_owned(), "node1".to_owned()), node.clone());
                }
                self.changed.notify_waiters();
                ok(&node)
            }
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

    fn watch(&self, collection: &str) -> Answer {
        let events = self.lock().events.subscribe();
        let collection = collection.to_owned();
        let lines = BroadcastStream::new(events).filter_map(move |event| {
            event.ok().filter(|(about, _)| *about == collection).map(|(_, line)| line)
        });
        let mut away = self.away.subscribe();
        let cut = async move { away.wait_for(|away| *away).await.is_ok() };
        stream(futures::StreamExt::take_until(lines, Box::pin(cut)))
    }

    fn list_or_get(&self, path: &str, named: Option<&str>) -> Answer {
        let state = self.lock();
        if let Some((collection, name)) = path.rsplit_once('/')
            && (collection.starts_with("/api/v1/namespaces/default/")
                || collection.ends_with("/runtimeclasses"))
        {
            return match state.objects.get(&(collection.to_owned(), name.to_owned())) {
                Some(object) => ok(object),
                None => not_found(),
            };
        }
        let matching = state
            .objects
            .iter()
            .filter(|((collection, name), _)| collection == path && named.is_none_or(|named| named == name));
        let items: Vec<Value> = matching.map(|(_, object)| object.clone()).collect();
        let version = state.version.to_string();
        ok(
            &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}),
        )
    }

    fn token(&self) -> Answer {
        let mut state = self.lock();
        state.version += 1;
        let now = std::time::SystemTime::now() + Duration::from_secs(state.token_seconds.unsigned_abs());
        let now = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        let expires = jiff::Timestamp::from_second(i64::try_from(now).unwrap_or(0)).expect("a time");
        ok(&json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {}, "spec": {"audiences": []},
            "status": {"token": format!("token{}", state.version), "expirationTimestamp": expires.to_string()}}))
    }

    fn note(&self, body: &[u8]) -> Answer {
        let event: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        self.lock().notes.push((text("reason"), text("message")));
        ok(&event)
    }

    /// Applies a strategic merge patch to a pod's status: conditions merge by type, all other fields are
    /// replaced.
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
