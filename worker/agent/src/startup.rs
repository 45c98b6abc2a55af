//! Starts the agent: connects to the runtime, registers the node, starts all parts, and waits until they end.
//! Pods keep running when the agent stops.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use proto_env::supervise::supervise;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::config::AgentConfig;
use crate::context::{Context, Pods};
use crate::cri::{self, Cri};
use crate::events::Events;
use crate::node::health::LastRelist;
use crate::object_cache::ObjectCache;
use crate::probes::{Probes, Wake};
use crate::protection::Abilities;
use crate::services::Services;
use crate::status::writer::StatusWriter;
use crate::{Error, gc, logs, node, pod_manager, pod_source, resources, server};

const CHANGES: usize = 1024;
const CONCURRENT_PULLS: usize = 4;
/// Deadline of the runtime's answer about its features.
const STATUS_PATIENCE: Duration = Duration::from_secs(10);
const RUNTIME_RETRY: Duration = Duration::from_millis(200);

/// Runs the agent until `shutdown`. Fails only if it cannot start at all (bad socket path, port in use) or a
/// part cannot be restarted; other failures are retried.
pub async fn run(config: AgentConfig, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    for dir in [&config.root_dir, &config.pod_log_dir] {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("make directory", dir.clone(), e))?;
    }
    let cri = Cri::connect(&config.cri_socket)?;
    let relist = LastRelist::default();
    let health = config.health.clone();
    let (asked, compared, stop) = (cri.clone(), relist.clone(), shutdown.clone());
    tokio::spawn(supervise("agent-health", move || {
        node::health::watch(asked.clone(), compared.clone(), health.clone(), stop.clone())
    }));
    let Some(version) = wait_for_runtime(&cri, &shutdown).await else { return Ok(()) };
    info!(runtime = version.runtime_name, version = version.runtime_version, "container runtime found");
    let (node_sender, node_receiver) = watch::channel(None);
    let abilities = abilities(&cri, &version.runtime_name).await;
    let (services, follow_services) = Services::new(client.clone(), shutdown.clone());
    let runtime = Runtime { cri, version, abilities };
    let context = build(config, client, runtime, services, node_receiver, &shutdown);
    let listener = server::listen(context.config.listen).await?;
    let port = listener.local_addr().map_err(|e| Error::Server(e.to_string()))?.port();

    let mut tasks = start_parts(&context, node_sender, (listener, port), relist, &shutdown);
    tasks.spawn(follow_services);
    let mut result = Ok(());
    while let Some(outcome) = tasks.join_next().await {
        if let Err(error) = outcome
            && error.is_panic()
        {
            error!(%error, "a part of the agent failed; stopping it");
            result = Err(Error::Panicked(error.to_string()));
            shutdown.cancel();
        }
    }
    result
}

/// Starts every part that runs as long as the agent. A part that panics is restarted, or ends the agent if it
/// cannot be restarted.
fn start_parts(
    context: &Arc<Context>,
    node_sender: watch::Sender<Option<Arc<Node>>>,
    (listener, port): (TcpListener, u16),
    relist: LastRelist,
    shutdown: &CancellationToken,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let (changes, receiver) = mpsc::channel(CHANGES);
    let (synced, first_list) = oneshot::channel();
    let (statuses, stop) = (context.statuses.clone(), shutdown.clone());
    tasks.spawn(supervise("agent-status-writer", move || statuses.clone().run(stop.clone())));
    let (own, seen, stop) = (context.clone(), Arc::new(node_sender), shutdown.clone());
    tasks.spawn(supervise("agent-node", move || node::run(own.clone(), seen.clone(), port, stop.clone())));
    // These two share a channel and the record of what was sent over it: neither can be restarted alone, so a
    // panic of one ends the agent.
    tasks.spawn(pod_source::run(
        context.client.clone(),
        context.config.node_name.clone(),
        changes,
        shutdown.clone(),
    ));
    tasks.spawn(pod_manager::run(context.clone(), receiver, synced, shutdown.clone()));
    tasks.spawn(server::run(context.clone(), listener, shutdown.clone()));
    let (own, stop) = (context.clone(), shutdown.clone());
    tasks.spawn(supervise("agent-log-rotation", move || logs::rotate::run(own.clone(), stop.clone())));
    let (own, stop) = (context.clone(), shutdown.clone());
    tasks.spawn(supervise("agent-runtime-events", move || {
        let pods = own.pods.clone();
        cri::events::follow(own.cri.clone(), move |uid| pods.wake(uid), relist.clone(), stop.clone())
    }));
    let (collector, stop) = (context.clone(), shutdown.clone());
    tasks.spawn(async move {
        // Orphans can be recognised only after the pods of the API server have been listed.
        if first_list.await.is_ok() {
            supervise("agent-gc", move || gc::run(collector.clone(), stop.clone())).await;
        }
    });
    tasks
}

async fn wait_for_runtime(cri: &Cri, shutdown: &CancellationToken) -> Option<k8s_cri::v1::VersionResponse> {
    let mut said = false;
    loop {
        match cri.version().await {
            Ok(version) => return Some(version),
            Err(error) if !said => {
                info!(%error, "waiting for the container runtime");
                said = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(RUNTIME_RETRY) => {}
        }
    }
}

/// Asks the runtime for its features; a feature it does not report counts as missing.
async fn abilities(cri: &Cri, runtime_name: &str) -> Abilities {
    let answer = tokio::time::timeout(STATUS_PATIENCE, cri.status()).await;
    let status = answer.ok().and_then(Result::ok).unwrap_or_default();
    let strict_groups = status.features.is_some_and(|features| features.supplemental_groups_policy);
    let default_handler = status.runtime_handlers.into_iter().find(|handler| handler.name.is_empty());
    let features = default_handler.and_then(|handler| handler.features);
    let recursive = features.is_some_and(|features| features.recursive_read_only_mounts);
    Abilities::of(runtime_name, strict_groups, recursive)
}

/// The connected container runtime, with its version and abilities.
struct Runtime {
    cri: Cri,
    version: k8s_cri::v1::VersionResponse,
    abilities: Abilities,
}

fn build(
    config: AgentConfig,
    client: Client,
    runtime: Runtime,
    services: Services,
    node: watch::Receiver<Option<Arc<Node>>>,
    shutdown: &CancellationToken,
) -> Arc<Context> {
    let Runtime { cri, version, abilities } = runtime;
    let pods = Pods::default();
    let woken = pods.clone();
    let wake: Wake = Arc::new(move |uid| woken.wake(uid));
    let events = Events::start(client.clone(), &config.node_name, shutdown.clone());
    let capacity = node::info::capacity(&config);
    let allocatable = node::info::allocatable(&config, &capacity);
    let node_memory = capacity.get("memory").map_or(0, |q| resources::amount("memory", q));
    Arc::new(Context {
        statuses: StatusWriter::new(client.clone()),
        probes: Probes::new(cri.clone(), events.clone(), wake.clone()),
        objects: Arc::new(ObjectCache::new(client.clone(), wake, shutdown.clone())),
        services,
        runtime_name: version.runtime_name.clone(),
        runtime_version: version.runtime_version.clone(),
        node_ips: vec![config.node_ip.to_string()],
        pulls: Semaphore::new(CONCURRENT_PULLS),
        capacity: BTreeMap::clone(&capacity),
        config,
        client,
        cri,
        events,
        pods,
        node,
        allocatable,
        node_memory,
        abilities,
    })
}
