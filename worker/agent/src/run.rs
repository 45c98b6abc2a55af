//! Wires the agent: connects to the runtime, registers the node, starts everything, and waits for the end. Stopping the agent stops
//! no pod.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::AgentConfig;
use crate::context::{Context, Pods};
use crate::cri::{self, Cri};
use crate::events::Events;
use crate::objects::Objects;
use crate::probes::{Probes, Wake};
use crate::services::Services;
use crate::status::writer::StatusWriter;
use crate::{Error, gc, logs, node, pod_manager, pod_source, resources, server};

const CHANGES: usize = 1024;
const CONCURRENT_PULLS: usize = 4;
const RUNTIME_RETRY: Duration = Duration::from_millis(200);

/// Runs the agent until `shutdown`. Fails only if it cannot start at all (bad socket path, port taken); whatever can heal is retried.
pub async fn run(config: AgentConfig, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    for dir in [&config.root_dir, &config.pod_log_dir] {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("make directory", dir.clone(), e))?;
    }
    let cri = Cri::connect(&config.cri_socket)?;
    let Some(version) = wait_for_runtime(&cri, &shutdown).await else { return Ok(()) };
    info!(runtime = version.runtime_name, version = version.runtime_version, "container runtime found");
    let (node_sender, node_receiver) = watch::channel(None);
    let context = build(config, client, cri, &version, node_receiver, &shutdown);
    let listener = server::listen(context.config.listen).await?;
    let port = listener.local_addr().map_err(|e| Error::Server(e.to_string()))?.port();

    let mut tasks = tokio::task::JoinSet::new();
    let (changes, receiver) = mpsc::channel(CHANGES);
    let (synced, first_list) = oneshot::channel();
    tasks.spawn(context.statuses.clone().run(shutdown.clone()));
    tasks.spawn(node::run(context.clone(), node_sender, port, shutdown.clone()));
    tasks.spawn(pod_source::run(
        context.client.clone(),
        context.config.node_name.clone(),
        changes,
        shutdown.clone(),
    ));
    tasks.spawn(pod_manager::run(context.clone(), receiver, synced, shutdown.clone()));
    tasks.spawn(server::run(context.clone(), listener, shutdown.clone()));
    tasks.spawn(logs::rotate::run(context.clone(), shutdown.clone()));
    let pods = context.pods.clone();
    tasks.spawn(cri::events::follow(context.cri.clone(), move |uid| pods.wake(uid), shutdown.clone()));
    let (collector, stop) = (context.clone(), shutdown.clone());
    tasks.spawn(async move {
        // Only once the API's pods are known can anything be called an orphan.
        if first_list.await.is_ok() {
            gc::run(collector, stop).await;
        }
    });
    while let Some(outcome) = tasks.join_next().await {
        if let Err(error) = outcome
            && error.is_panic()
        {
            warn!(%error, "a part of the agent failed; stopping it");
            shutdown.cancel();
        }
    }
    Ok(())
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

fn build(
    config: AgentConfig,
    client: Client,
    cri: Cri,
    version: &k8s_cri::v1::VersionResponse,
    node: watch::Receiver<Option<Arc<k8s_openapi::api::core::v1::Node>>>,
    shutdown: &CancellationToken,
) -> Arc<Context> {
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
        objects: Arc::new(Objects::new(client.clone(), wake, shutdown.clone())),
        services: Services::start(client.clone(), shutdown.clone()),
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
    })
}
