//! An in-memory API server: lists and watches Nodes, Services and EndpointSlices, as far as
//! `kube::runtime::watcher` needs. Objects are added as JSON.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use futures::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame},
};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Key = (String, String);

struct Store {
    revision: u64,
    objects: BTreeMap<Key, Value>,
    log: Vec<(u64, String, String)>,
    events: broadcast::Sender<(u64, String, String)>,
    down: bool,
}

/// The fake API server.
#[derive(Clone)]
pub struct FakeApi {
    store: Arc<Mutex<Store>>,
}

impl Default for FakeApi {
    fn default() -> Self {
        let (events, _) = broadcast::channel(1024);
        let store = Store { revision: 1, objects: BTreeMap::new(), log: Vec::new(), events, down: false };
        Self { store: Arc::new(Mutex::new(store)) }
    }
}

impl FakeApi {
    pub fn client(&self) -> kube::Client {
        let store = self.store.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let response = answer(&store, &request);
            async move { Ok::<_, std::convert::Infallible>(response) }
        });
        kube::Client::new(service, "default")
    }

    /// Ends all watches and refuses all requests, or serves again.
    pub fn set_down(&self, down: bool) {
        let mut store = self.store.lock().unwrap();
        store.down = down;
        store.events = broadcast::channel(1024).0;
    }

    pub fn put(&self, resource: &str, mut object: Value) {
        let mut store = self.store.lock().unwrap();
        store.revision += 1;
        let revision = store.revision;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        let name = object["metadata"]["name"].as_str().unwrap().to_string();
        let known = store.objects.insert((resource.into(), name), object.clone()).is_some();
        store.publish(resource, if known { "MODIFIED" } else { "ADDED" }, &object);
    }

    pub fn delete(&self, resource: &str, name: &str) {
        let mut store = self.store.lock().unwrap();
        let Some(mut object) = store.objects.remove(&(resource.to_string(), name.to_string())) else {
            return;
        };
        store.revision += 1;
        object["metadata"]["resourceVersion"] = json!(store.revision.to_string());
        store.publish(resource, "DELETED", &object);
    }

    pub fn put_node(&self, name: &str, ip: Ipv4Addr, pod_cidr: &str) {
        self.put(
            "nodes",
            json!({
                "metadata": { "name": name },
                "spec": { "podCIDR": pod_cidr, "podCIDRs": [pod_cidr] },
                "status": { "addresses": [{ "type": "InternalIP", "address": ip.to_string() }] },
            }),
        );
    }

    /// Adds a Service with one port named `p`; `extra` is merged into its spec.
    pub fn put_service(&self, name: &str, cluster_ip: &str, protocol: &str, port: u16, extra: Value) {
        let mut spec = json!({
            "clusterIP": cluster_ip,
            "ports": [{ "name": "p", "protocol": protocol, "port": port }],
        });
        if let Some(node_port) = extra.get("nodePort") {
            spec["type"] = json!("NodePort");
            spec["ports"][0]["nodePort"] = node_port.clone();
        }
        for (key, value) in extra.as_object().into_iter().flatten().filter(|(key, _)| *key != "nodePort") {
            spec[key.as_str()] = value.clone();
        }
        self.put("services", json!({ "metadata": { "name": name, "namespace": "default" }, "spec": spec }));
    }

    /// Adds the EndpointSlice of a Service; `endpoints` are ready, each with address and node.
    pub fn put_endpoints(&self, service: &str, protocol: &str, port: u16, endpoints: &[(Ipv4Addr, &str)]) {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(ip, node)| {
                json!({ "addresses": [ip.to_string()], "nodeName": node, "conditions": { "ready": true } })
            })
            .collect();
        self.put(
            "endpointslices",
            json!({
                "metadata": {
                    "name": format!("{service}-1"),
                    "namespace": "default",
                    "labels": { "kubernetes.io/service-name": service },
                },
                "addressType": "IPv4",
                "endpoints": endpoints,
                "ports": [{ "name": "p", "protocol": protocol, "port": port }],
            }),
        );
    }
}

impl Store {
    fn publish(&mut self, resource: &str, kind: &str, object: &Value) {
        let mut object = object.clone();
        fill_kind(resource, &mut object);
        let event =
            (self.revision, resource.to_string(), json!({ "type": kind, "object": object }).to_string());
        self.log.push(event.clone());
        let _nobody_watches = self.events.send(event);
    }
}

fn fill_kind(resource: &str, object: &mut Value) {
    let (version, kind) = match resource {
        "nodes" => ("v1", "Node"),
        "services" => ("v1", "Service"),
        _ => ("discovery.k8s.io/v1", "EndpointSlice"),
    };
    object["apiVersion"] = json!(version);
    object["kind"] = json!(kind);
}

fn answer(
    store: &Arc<Mutex<Store>>,
    request: &Request<Body>,
) -> Response<UnsyncBoxBody<Bytes, std::io::Error>> {
    let resource = request.uri().path().rsplit('/').next().unwrap_or_default().to_string();
    let query = request.uri().query().unwrap_or_default();
    let store = store.lock().unwrap();
    if store.down {
        let status =
            json!({ "kind": "Status", "status": "Failure", "code": 503, "reason": "ServiceUnavailable" });
        let body = Full::new(Bytes::from(status.to_string())).map_err(|never| match never {});
        let mut response = Response::new(body.boxed_unsync());
        *response.status_mut() = hyper::StatusCode::SERVICE_UNAVAILABLE;
        return response;
    }
    if !query.split('&').any(|part| part == "watch=true" || part == "watch=1") {
        let items = store.objects.iter().filter(|((held, _), _)| *held == resource);
        let mut items: Vec<Value> = items.map(|(_, object)| object.clone()).collect();
        items.iter_mut().for_each(|object| fill_kind(&resource, object));
        let list = json!({
            "apiVersion": "v1", "kind": "List", "items": items,
            "metadata": { "resourceVersion": store.revision.to_string() },
        });
        let body = Full::new(Bytes::from(list.to_string())).map_err(|never| match never {});
        return Response::new(body.boxed_unsync());
    }
    let after: u64 = query
        .split('&')
        .find_map(|part| part.strip_prefix("resourceVersion="))
        .and_then(|revision| revision.parse().ok())
        .unwrap_or(0);
    let missed: Vec<_> = store.log.iter().filter(|(revision, ..)| *revision > after).cloned().collect();
    let live = futures::stream::unfold(store.events.subscribe(), |mut events| async {
        events.recv().await.ok().map(|event| (event, events))
    });
    let stream = futures::stream::iter(missed).chain(live).filter_map(move |(_, of, line)| {
        let wanted = of == resource;
        async move { wanted.then(|| Ok(Frame::data(Bytes::from(line + "\n")))) }
    });
    Response::new(StreamBody::new(stream).boxed_unsync())
}
