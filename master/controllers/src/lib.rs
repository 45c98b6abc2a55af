//! The controllers of a leading master. `master/node` starts [`run`] when leadership begins, with a client
//! whose writes are fenced to that term, and cancels it when leadership ends. They use the Kubernetes API
//! alone: keys come from the shared caches ([`master_client::Informers`]), writes go through the client.
//!
//! One controller a file:
//!
//! | file | is responsible for |
//! | --- | --- |
//! | `deployment.rs` | the ReplicaSets of Deployments |
//! | `replicaset.rs` | the pods of ReplicaSets |
//! | `endpointslice.rs`, `endpoints.rs` | addresses and ports of the pods of Services |
//! | `namespace.rs` | emptying and removing namespaces that are being deleted |
//! | `service_account.rs`, `root_ca.rs` | the ServiceAccount and the CA ConfigMap of every namespace |
//! | `system.rs` | the namespaces and Services of every cluster |
//! | `garbage_collector.rs` | deleting objects whose last owner is gone |
//! | `node_lifecycle.rs` | taints for a node's conditions; the pods' Ready condition on lost nodes |
//! | `taint_eviction.rs` | evicting pods from nodes whose NoExecute taints they do not tolerate |
//! | `pod_gc.rs` | deleting pods that no agent will delete |
//! | `pod_cidr.rs` | the nodes' parts of the pod address range |

mod api_resources;
mod context;
mod controller;
mod deployment;
mod endpoints;
mod endpointslice;
mod error;
mod expectations;
mod garbage_collector;
mod namespace;
mod node_lifecycle;
mod node_taints;
mod owner;
mod pod_cidr;
mod pod_gc;
mod pod_state;
mod replicaset;
mod root_ca;
mod service_account;
mod service_endpoints;
mod system;
mod taint_eviction;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ipnet::Ipv4Net;
use kube::Client;
pub use master_client::Informers;
use proto_env::Clock;
use proto_env::supervise::supervise;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use context::Context;
use controller::Controller;

/// Configuration of the controllers.
#[derive(Clone)]
pub struct Config {
    /// PEM certificate of the cluster's CA, the content of `kube-root-ca.crt` in every namespace.
    pub cluster_ca: String,
    /// Range of all pod addresses.
    pub cluster_cidr: Ipv4Net,
    /// Prefix length of one node's part of the range.
    pub node_cidr_prefix: u8,
    /// ClusterIP of Service `default/kubernetes`.
    pub api_service_ip: Ipv4Addr,
    /// ClusterIP of Service `kube-system/kube-dns`.
    pub dns_service_ip: Ipv4Addr,
    /// API addresses of the healthy masters.
    pub masters: watch::Receiver<Vec<SocketAddr>>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
}

/// Runs all controllers until `shutdown`. Before, the caches catch up with everything that earlier leaders
/// wrote.
pub async fn run(client: Client, informers: Informers, config: Config, shutdown: CancellationToken) {
    if !informers.caught_up(&client, &shutdown).await {
        return;
    }
    let context = Context { client, informers, config: Arc::new(config), shutdown };
    let mut running = tokio::task::JoinSet::new();
    let mut start = |controller: Started| {
        running.spawn(controller);
    };
    start(started(&context, deployment::DeploymentController::new));
    start(started(&context, replicaset::ReplicaSetController::new));
    start(started(&context, endpointslice::EndpointSliceController::new));
    start(started(&context, endpoints::EndpointsController::new));
    start(started(&context, namespace::NamespaceController::new));
    start(started(&context, service_account::ServiceAccountController::new));
    start(started(&context, root_ca::RootCaController::new));
    start(started(&context, system::SystemController::new));
    start(started(&context, garbage_collector::GarbageCollectorController::new));
    start(started(&context, node_lifecycle::NodeLifecycleController::new));
    start(started(&context, taint_eviction::TaintEvictionController::new));
    start(started(&context, pod_gc::PodGcController::new));
    start(started(&context, pod_cidr::PodCidrController::new));
    while running.join_next().await.is_some() {}
}

type Started = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs one controller under supervision: after a panic a new one starts, and reconciles everything again.
fn started<C: Controller>(context: &Context, new: fn(Context) -> C) -> Started {
    let context = context.clone();
    Box::pin(supervise("controller", move || {
        controller::run(Arc::new(new(context.clone())), context.shutdown.clone())
    }))
}
