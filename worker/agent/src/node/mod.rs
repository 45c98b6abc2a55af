//! The Node object of this node: registers it, keeps its status up to date, and renews its Lease (slowly,
//! only for clients that read it). The masters learn from heartbeats (`worker/node`) whether the node is
//! alive; a Ready=Unknown written by a master is corrected here at once.

pub mod health;
pub mod info;
mod lease;
mod status;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, NodeSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use proto_api::node_labels::SENDS_BEATS;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::Error;
use crate::context::Context;

const RETRY: Duration = Duration::from_millis(500);
/// Minimum time between two writes of the status, so that a master and an agent that disagree do not race
/// each other.
const MIN_GAP: Duration = Duration::from_secs(1);
const CHECK: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(10);

/// Registers the node, then keeps it up to date until `shutdown`. `port` is the port of the HTTPS server.
pub async fn run(
    context: Arc<Context>,
    seen: Arc<watch::Sender<Option<Arc<Node>>>>,
    port: u16,
    shutdown: CancellationToken,
) {
    let changed = Arc::new(Notify::new());
    let mut health = context.config.health.subscribe();
    let heard = changed.clone();
    let hear = async move {
        while health.changed().await.is_ok() {
            heard.notify_one();
        }
    };
    let keep = async {
        register(&context, port).await;
        context.events.node_normal(&named(&context), "Starting", "Starting kubelet.");
        let watching = follow(&context, &seen, &changed);
        let writing = keep_status(&context, &seen, port, &changed);
        let leasing = lease::keep(&context);
        futures::future::join4(watching, writing, leasing, hear).await;
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        () = keep => {}
    }
}

fn named(context: &Context) -> Node {
    let name = Some(context.config.node_name.clone());
    Node { metadata: ObjectMeta { name, ..Default::default() }, ..Default::default() }
}

/// Creates the Node, or updates the labels of an existing one; retries until it succeeds.
async fn register(context: &Context, port: u16) {
    loop {
        match tokio::time::timeout(DEADLINE, register_once(context, port)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => warn!(%error, "cannot register the node yet"),
            Err(_) => warn!("cannot register the node yet: timed out"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn register_once(context: &Context, port: u16) -> Result<(), Error> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let mut node = named(context);
    node.metadata.labels = Some(info::labels(&context.config));
    node.metadata.annotations = Some([(SENDS_BEATS.to_owned(), "true".to_owned())].into());
    node.spec = Some(NodeSpec {
        taints: Some(context.config.taints.clone()).filter(|taints| !taints.is_empty()),
        ..Default::default()
    });
    node.status = Some(status::compute(context, None, port).await);
    match nodes.create(&PostParams::default(), &node).await {
        Ok(created) => {
            info!(node = context.config.node_name, "node registered");
            // The API server may drop the status on creation: write it separately then.
            if status::is_ready(&created) {
                Ok(())
            } else {
                write_status(context, Some(&created), port).await
            }
        }
        Err(kube::Error::Api(answer)) if answer.reason == "AlreadyExists" => {
            let patch = json!({"metadata": {
                "labels": node.metadata.labels, "annotations": node.metadata.annotations,
            }});
            nodes.patch(&context.config.node_name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            write_status(context, None, port).await
        }
        Err(error) => Err(error.into()),
    }
}

/// Watches this node's Node object. If it is deleted, the status writer registers it again.
async fn follow(context: &Context, seen: &watch::Sender<Option<Arc<Node>>>, changed: &Notify) {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let stream = watcher::watch_object(nodes, &context.config.node_name).default_backoff();
    let mut stream = std::pin::pin!(stream);
    while let Some(item) = stream.next().await {
        match item {
            Ok(node) => {
                let alarm = node.as_ref().is_none_or(|node| !status::is_ready(node));
                seen.send_replace(node.map(Arc::new));
                if alarm {
                    changed.notify_one();
                }
            }
            Err(error) => debug!(%error, "watching the own node"),
        }
    }
}

/// Writes the status when it has changed, when someone else has set the node not ready, and at least once
/// each `node_status_period`.
async fn keep_status(
    context: &Context,
    seen: &watch::Sender<Option<Arc<Node>>>,
    port: u16,
    changed: &Notify,
) {
    let mut written = Instant::now();
    loop {
        tokio::time::sleep(MIN_GAP).await;
        tokio::select! {
            biased;
            () = changed.notified() => {}
            () = tokio::time::sleep(CHECK) => {}
        }
        let current = seen.borrow().clone();
        let outcome = match current {
            None => tokio::time::timeout(DEADLINE, register_once(context, port)).await,
            Some(node) => {
                let fresh = status::compute(context, Some(&node), port).await;
                let due = written.elapsed() >= context.config.node_status_period;
                if !due && !status::differs(&node, &fresh) {
                    continue;
                }
                tokio::time::timeout(DEADLINE, write_status(context, Some(&node), port)).await
            }
        };
        match outcome {
            Ok(Ok(())) => written = Instant::now(),
            Ok(Err(error)) => {
                warn!(%error, "cannot write the node's status");
                changed.notify_one();
            }
            Err(_) => changed.notify_one(),
        }
    }
}

async fn write_status(context: &Context, old: Option<&Node>, port: u16) -> Result<(), Error> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let fetched;
    let old = match old {
        Some(node) => node,
        None => {
            fetched = nodes.get(&context.config.node_name).await?;
            &fetched
        }
    };
    let patch = status::patch(&status::compute(context, Some(old), port).await);
    nodes.patch_status(&context.config.node_name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    Ok(())
}
