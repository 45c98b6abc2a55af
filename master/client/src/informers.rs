//! The shared caches of one master. Started by `master/node` at boot with an unfenced client; read by the
//! controllers and the scheduler while they lead.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, try_join_all};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams};
use kube::{Client, Resource};
use proto_decode::BrokenObjects;
use proto_env::supervise::supervise;
use tokio_util::sync::CancellationToken;

use crate::list_watch::parse_revision;
use crate::{Error, Informer, ListWatch, Object};

/// Longest time to wait until a cache has received the writes of earlier leaders by its watch; after that its
/// informer lists the objects.
const CATCH_UP_GRACE: Duration = Duration::from_millis(30);

/// Name of the ConfigMap with the cluster's CA in every namespace: the only ConfigMaps that are watched.
const ROOT_CA_CONFIG_MAP: &str = "kube-root-ca.crt";

/// Warm caches of the kinds that controllers and scheduler work on. Cheap to clone.
#[derive(Clone)]
pub struct Informers {
    /// Cache of all Pods, without what only their nodes need (`trim.rs`), indexed by [`Informers::BY_NODE`] and [`Informers::BY_CONTROLLER`].
    pub pods: Arc<Informer<Pod>>,
    /// Cache of all Nodes.
    pub nodes: Arc<Informer<Node>>,
    /// Cache of the Leases of nodes, which lie in the namespace [`Informers::NODE_LEASES`].
    pub node_leases: Arc<Informer<Lease>>,
    /// Cache of all Namespaces.
    pub namespaces: Arc<Informer<Namespace>>,
    /// Cache of all Services.
    pub services: Arc<Informer<Service>>,
    /// Cache of all Endpoints.
    pub endpoints: Arc<Informer<Endpoints>>,
    /// Cache of all EndpointSlices, indexed by [`Informers::BY_SERVICE`].
    pub endpoint_slices: Arc<Informer<EndpointSlice>>,
    /// Cache of all ReplicaSets, indexed by [`Informers::BY_CONTROLLER`].
    pub replica_sets: Arc<Informer<ReplicaSet>>,
    /// Cache of all Deployments.
    pub deployments: Arc<Informer<Deployment>>,
    /// Cache of all ServiceAccounts.
    pub service_accounts: Arc<Informer<ServiceAccount>>,
    /// Cache of the ConfigMaps named `kube-root-ca.crt`, one per namespace.
    pub root_ca_config_maps: Arc<Informer<ConfigMap>>,
    /// Objects that the informers skipped because they do not decode; other readers may add to the same
    /// record.
    pub broken: BrokenObjects,
    ask: AskProgress,
}

/// Function that makes the server send bookmarks to all watches at once.
pub type AskProgress = Arc<dyn Fn() + Send + Sync>;

impl Informers {
    /// Namespace of the Leases of nodes, which have the nodes' names.
    pub const NODE_LEASES: &'static str = "kube-node-lease";
    /// Index of pods by `spec.nodeName`.
    pub const BY_NODE: &'static str = "node";
    /// Index by [`Informers::controlled_by`], since an owner is valid only in the object's own namespace.
    pub const BY_CONTROLLER: &'static str = "controller";
    /// Index of EndpointSlices by `namespace/service`.
    pub const BY_SERVICE: &'static str = "service";

    /// Value in [`Informers::BY_CONTROLLER`] of the objects of `namespace` whose controller has this UID;
    /// with an empty `uid`, of those without a controller.
    pub fn controlled_by(namespace: &str, uid: &str) -> String {
        format!("{namespace}/{uid}")
    }

    /// Starts all caches; they run until `shutdown`. `ask` makes the server send bookmarks, so that
    /// catching up is quick.
    pub fn start(client: Client, ask: AskProgress, shutdown: &CancellationToken) -> Self {
        let broken = BrokenObjects::default();
        let informers = Self {
            pods: Informer::new(
                "pods",
                objects(&client).trimmed(),
                vec![(Self::BY_NODE, pod_node as _), (Self::BY_CONTROLLER, controller_uid::<Pod> as _)],
                broken.clone(),
            ),
            nodes: Informer::new("nodes", objects(&client), vec![], broken.clone()),
            node_leases: Informer::new(
                "leases",
                ListWatch::objects(Api::namespaced(client.clone(), Self::NODE_LEASES)),
                vec![],
                broken.clone(),
            ),
            namespaces: Informer::new("namespaces", objects(&client), vec![], broken.clone()),
            services: Informer::new("services", objects(&client), vec![], broken.clone()),
            endpoints: Informer::new("endpoints", objects(&client), vec![], broken.clone()),
            endpoint_slices: Informer::new(
                "endpointslices",
                objects(&client),
                vec![(Self::BY_SERVICE, slice_service as _)],
                broken.clone(),
            ),
            replica_sets: Informer::new(
                "replicasets",
                objects(&client),
                vec![(Self::BY_CONTROLLER, controller_uid::<ReplicaSet> as _)],
                broken.clone(),
            ),
            deployments: Informer::new("deployments", objects(&client), vec![], broken.clone()),
            service_accounts: Informer::new("serviceaccounts", objects(&client), vec![], broken.clone()),
            root_ca_config_maps: Informer::new(
                "configmaps",
                objects(&client).fields(&format!("metadata.name={ROOT_CA_CONFIG_MAP}")),
                vec![],
                broken.clone(),
            ),
            broken,
            ask,
        };
        spawn(&informers.pods, shutdown);
        spawn(&informers.nodes, shutdown);
        spawn(&informers.node_leases, shutdown);
        spawn(&informers.namespaces, shutdown);
        spawn(&informers.services, shutdown);
        spawn(&informers.endpoints, shutdown);
        spawn(&informers.endpoint_slices, shutdown);
        spawn(&informers.replica_sets, shutdown);
        spawn(&informers.deployments, shutdown);
        spawn(&informers.service_accounts, shutdown);
        spawn(&informers.root_ca_config_maps, shutdown);
        informers
    }

    /// Brings every cache to a revision that holds all writes acknowledged before this call. A leader does
    /// this before its first decision, so that it does not create again what its predecessor created last.
    ///
    /// # Errors
    /// When the API cannot be read consistently (no quorum); the caller may retry.
    pub async fn catch_up(&self, client: &Client) -> Result<(), Error> {
        let revision = self.newest_revision(client).await?;
        self.ask_progress();
        let caches: Vec<BoxFuture<'_, Result<(), Error>>> = vec![
            Box::pin(self.pods.catch_up(revision, CATCH_UP_GRACE)),
            Box::pin(self.nodes.catch_up(revision, CATCH_UP_GRACE)),
            Box::pin(self.node_leases.catch_up(revision, CATCH_UP_GRACE)),
            Box::pin(self.namespaces.catch_up(revision, CATCH_UP_GRACE)),
            Box::pin(self.services.catch_up(revision, CATCH_UP_GRACE)),
            Box::pin(self.endpoints.catch_up(revision, CATCH_UP_GRACE)),
            Box::pin(self.endpoint_slices.catch_up(revision, CATCH_UP_GRACE)),
            Box::pin(self.replica_sets.catch_up(revision, CATCH_UP_GRACE)),
            Box::pin(self.deployments.catch_up(revision, CATCH_UP_GRACE)),
            Box::pin(self.service_accounts.catch_up(revision, CATCH_UP_GRACE)),
            Box::pin(self.root_ca_config_maps.catch_up(revision, CATCH_UP_GRACE)),
        ];
        try_join_all(caches).await?;
        Ok(())
    }

    /// Returns a revision that holds all writes acknowledged before this call.
    ///
    /// # Errors
    /// When the API cannot be read consistently (no quorum).
    pub async fn newest_revision(&self, client: &Client) -> Result<u64, Error> {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        // Metadata only, so that a namespace that does not decode cannot block a leader.
        let newest = namespaces.list_metadata(&ListParams::default().limit(1)).await?;
        parse_revision("list", newest.metadata.resource_version.as_deref())
    }

    /// Makes the server report its revision to all watches, so that waiting for a revision takes no longer
    /// than needed.
    pub fn ask_progress(&self) {
        (self.ask)();
    }

    /// Retries [`Informers::catch_up`] until it succeeds; false when `shutdown` came first.
    pub async fn caught_up(&self, client: &Client, shutdown: &CancellationToken) -> bool {
        loop {
            let attempt = tokio::select! {
                biased;
                () = shutdown.cancelled() => return false,
                attempt = self.catch_up(client) => attempt,
            };
            match attempt {
                Ok(()) => return true,
                Err(error) => tracing::warn!(%error, "caches are not up to date yet"),
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return false,
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        }
    }
}

fn objects<K>(client: &Client) -> ListWatch<K>
where
    K: Object + Resource<DynamicType = ()>,
{
    ListWatch::objects(Api::all(client.clone()))
}

fn spawn<K: Object>(informer: &Arc<Informer<K>>, shutdown: &CancellationToken) {
    let (informer, shutdown) = (informer.clone(), shutdown.clone());
    tokio::spawn(async move { supervise("informer", || informer.run(shutdown.clone())).await });
}

fn pod_node(pod: &Pod) -> Vec<String> {
    pod.spec.iter().filter_map(|spec| spec.node_name.clone()).filter(|name| !name.is_empty()).collect()
}

fn controller_uid<K: Resource>(object: &K) -> Vec<String> {
    let owner = object.meta().owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let namespace = object.meta().namespace.as_deref().unwrap_or_default();
    vec![Informers::controlled_by(namespace, owner.map_or("", |owner| owner.uid.as_str()))]
}

fn slice_service(slice: &EndpointSlice) -> Vec<String> {
    let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    service.map(|service| format!("{namespace}/{service}")).into_iter().collect()
}
