//! Follows Services, EndpointSlices and Nodes through the API into the node's `ClusterState`. While the API
//! is unreachable the state keeps its content and the watches are retried without end. If an object cannot be
//! decoded, the state keeps its earlier version of that object, and other objects are not affected. Started
//! by `network.rs`.

use std::{collections::BTreeSet, fmt::Debug, sync::Arc, time::Duration};

use futures::{StreamExt, future::join3};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        utils::Backoff,
        watcher::{self, Event, watcher},
    },
};
use proto_decode::{BrokenObjects, Decoded};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::cluster_state::{
    ClusterContent, ClusterState, Concern, NodeView, ObjectKey, ServiceView, SliceView,
};

/// Label that names the Service of an EndpointSlice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Follows the API until shutdown.
pub async fn run(client: Client, state: ClusterState, shutdown: CancellationToken) {
    let services = follow(Api::all(client.clone()), &state, ServiceSink);
    let slices = follow(Api::all(client.clone()), &state, SliceSink);
    let nodes = follow(Api::all(client), &state, NodeSink);
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        _ = join3(services, slices, nodes) => {}
    }
}

/// Functions that write objects of one kind to the state.
trait Sink {
    type Object;
    type Key: Ord + Clone;
    fn key(meta: &ObjectMeta) -> Self::Key;
    const CONCERN: Concern;
    /// Adds or replaces an object; like `forget`, returns whether that changed anything.
    fn put(content: &mut ClusterContent, object: &Self::Object) -> bool;
    fn forget(content: &mut ClusterContent, key: &Self::Key) -> bool;
    fn keys(content: &ClusterContent) -> BTreeSet<Self::Key>;
    fn listed(content: &mut ClusterContent);
}

async fn follow<S: Sink>(api: Api<Decoded<S::Object>>, state: &ClusterState, _sink: S)
where
    S::Object: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events = watcher(api, watcher::Config::default()).backoff(RetryPauses::default());
    let broken = BrokenObjects::default();
    let mut events = std::pin::pin!(events);
    let mut seen = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => seen.clear(),
            Ok(Event::InitApply(object)) => {
                seen.insert(S::key(object.meta()));
                put::<S>(state, &object, &broken);
            }
            Ok(Event::InitDone) => state.change(S::CONCERN, |content| {
                for key in S::keys(content).difference(&seen) {
                    S::forget(content, key);
                }
                seen.clear();
                S::listed(content);
                true
            }),
            Ok(Event::Apply(object)) => put::<S>(state, &object, &broken),
            Ok(Event::Delete(object)) => {
                state.change(S::CONCERN, |content| S::forget(content, &S::key(object.meta())))
            }
            Err(error) => {
                let kind = <S::Object as Resource>::kind(&());
                tracing::debug!(%kind, %error, "watch interrupted; trying again");
            }
        }
    }
}

fn put<S: Sink>(state: &ClusterState, object: &Decoded<S::Object>, broken: &BrokenObjects)
where
    S::Object: Resource<DynamicType = ()>,
{
    match object {
        Decoded::Object(object) => state.change(S::CONCERN, |content| S::put(content, object)),
        Decoded::Broken(object) => broken.add(&S::Object::plural(&()), object),
    }
}

struct ServiceSink;

impl Sink for ServiceSink {
    type Object = Service;
    type Key = ObjectKey;
    const CONCERN: Concern = Concern::Routing;
    fn key(meta: &ObjectMeta) -> ObjectKey {
        namespaced_key(meta)
    }
    fn put(content: &mut ClusterContent, object: &Service) -> bool {
        content.put_service(Self::key(&object.metadata), ServiceView::from_api(object))
    }
    fn forget(content: &mut ClusterContent, key: &ObjectKey) -> bool {
        content.forget_service(key)
    }
    fn keys(content: &ClusterContent) -> BTreeSet<ObjectKey> {
        content.service_keys()
    }
    fn listed(content: &mut ClusterContent) {
        content.services_listed = true;
    }
}

fn namespaced_key(meta: &ObjectMeta) -> ObjectKey {
    ObjectKey::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

struct SliceSink;

impl Sink for SliceSink {
    type Object = EndpointSlice;
    type Key = ObjectKey;
    const CONCERN: Concern = Concern::Routing;
    fn key(meta: &ObjectMeta) -> ObjectKey {
        namespaced_key(meta)
    }
    fn put(content: &mut ClusterContent, object: &EndpointSlice) -> bool {
        let key = Self::key(&object.metadata);
        let Some(view) = SliceView::from_api(object) else { return content.forget_slice(&key) };
        let service = object.labels().get(SERVICE_NAME).map(|name| ObjectKey::new(&key.namespace, name));
        content.put_slice(key, service, view)
    }
    fn forget(content: &mut ClusterContent, key: &ObjectKey) -> bool {
        content.forget_slice(key)
    }
    fn keys(content: &ClusterContent) -> BTreeSet<ObjectKey> {
        content.slice_keys()
    }
    fn listed(content: &mut ClusterContent) {
        content.slices_listed = true;
    }
}

struct NodeSink;

impl Sink for NodeSink {
    type Object = Node;
    type Key = Arc<str>;
    const CONCERN: Concern = Concern::Nodes;
    fn key(meta: &ObjectMeta) -> Arc<str> {
        meta.name.as_deref().unwrap_or_default().into()
    }
    fn put(content: &mut ClusterContent, object: &Node) -> bool {
        content.put_node(Self::key(&object.metadata), NodeView::from_api(object))
    }
    fn forget(content: &mut ClusterContent, key: &Arc<str>) -> bool {
        content.nodes.remove(key).is_some()
    }
    fn keys(content: &ClusterContent) -> BTreeSet<Arc<str>> {
        content.nodes.keys().cloned().collect()
    }
    fn listed(content: &mut ClusterContent) {
        content.nodes_listed = true;
    }
}

/// Pauses between retries: 50 ms, doubling up to 2 s. Short, because a cluster without a leader usually has a
/// new one within a second, and routing should learn of changes soon after.
#[derive(Debug, Default)]
struct RetryPauses {
    tries: u32,
}

impl Iterator for RetryPauses {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        let pause = Duration::from_millis(50 << self.tries.min(6)).min(Duration::from_secs(2));
        self.tries = self.tries.saturating_add(1);
        // Randomized, so that nodes do not reconnect at the same time.
        Some(pause.mul_f64(rand::random_range(0.5..1.0)))
    }
}

impl Backoff for RetryPauses {
    fn reset(&mut self) {
        self.tries = 0;
    }
}
