//! Removes what no pod needs: pods in the runtime and on disk that the API server does not know, and dead
//! containers except the newest of each name. Images are removed by `image_gc`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_cri::v1::{Container, ContainerState, PodSandbox};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use worker_volumes::{PodLayout, VolumeLock, layout, unmount_pod_volumes};

use crate::context::Context;
use crate::cri::labels;
use crate::cri::snapshot::{RuntimePod, is_running};
use crate::image_gc::ImageCollector;
use crate::sync::kill;
use crate::{Error, cgroups};

const CONTAINER_PERIOD: Duration = Duration::from_secs(60);
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// Maximum number of pods or containers removed at a time.
const CONCURRENT: usize = 16;

/// Collects garbage each minute until `shutdown`; must be started after the node's pods have been listed.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let mut images = ImageCollector::default();
    loop {
        // The three collections run concurrently: an orphan that does not end must not keep unused images on
        // a full disk.
        let (orphans, dead, unused) =
            tokio::join!(orphans(&context), dead_containers(&context), images.collect(&context));
        if let Err(error) = orphans {
            warn!(%error, "cannot remove orphaned pods");
        }
        if let Err(error) = dead {
            warn!(%error, "cannot remove dead containers");
        }
        if let Err(error) = unused {
            warn!(%error, "cannot remove unused images");
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(CONTAINER_PERIOD) => {}
        }
    }
}

/// Stops and removes pods that the runtime has but the API server does not know, and pod directories without
/// a pod.
async fn orphans(context: &Context) -> Result<(), Error> {
    let sandboxes = context.cri.list_pod_sandboxes(None).await?;
    let containers = context.cri.list_containers(None).await?;
    let in_runtime = sandboxes.iter().map(|s| &s.labels).chain(containers.iter().map(|c| &c.labels));
    let uids: BTreeSet<String> =
        in_runtime.filter_map(|labels| labels.get(labels::POD_UID).cloned()).collect();
    // Orphans are ended independently: a sandbox that does not answer must not block the others.
    let unknown = uids.into_iter().filter(|uid| !context.pods.contains(uid));
    futures::stream::iter(unknown)
        .for_each_concurrent(CONCURRENT, |uid| async move {
            info!(uid, "ending a pod that the API server does not know");
            if let Err(error) = end_orphan(context, &uid).await {
                warn!(%error, uid, "cannot end a pod that the API server does not know");
            }
        })
        .await;
    let dirs = layout::pod_dirs(&context.config.root_dir)
        .map_err(|e| Error::io("list", context.config.root_dir.join("pods"), e))?;
    for uid in dirs.into_iter().filter(|uid| !context.pods.contains(uid)) {
        let layout = PodLayout::new(&context.config.root_dir, &uid);
        if let Err(error) = VolumeLock::default().run(move || unmount_pod_volumes(&layout)).await {
            warn!(%error, uid, "cannot remove the volumes of a pod that is gone");
        }
    }
    Ok(())
}

async fn end_orphan(context: &Context, uid: &str) -> Result<(), Error> {
    let runtime = RuntimePod::read(&context.cri, uid).await?;
    let stops = runtime.containers.iter().filter(|c| is_running(c)).map(|container| {
        let grace = container.annotations.get(labels::GRACE).and_then(|g| g.parse().ok());
        context.cri.stop_container(&container.id, grace.unwrap_or(DEFAULT_GRACE_SECONDS).max(1))
    });
    for outcome in futures::future::join_all(stops).await {
        outcome?;
    }
    kill::remove_all(context, &runtime).await?;
    let root = context.config.cgroup_root.trim_end_matches('/');
    for class in ["kubepods", "kubepods/burstable", "kubepods/besteffort"] {
        cgroups::remove(&format!("{root}/{class}/pod{uid}"));
    }
    Ok(())
}

/// Removes dead containers except the newest of each name (kept for its logs and exit code), and the dead and
/// unused sandboxes of a pod except the newest.
async fn dead_containers(context: &Context) -> Result<(), Error> {
    let containers = context.cri.list_containers(None).await?;
    let mut by_name: BTreeMap<(String, String), Vec<&Container>> = BTreeMap::new();
    for container in &containers {
        let (Some(uid), Some(name)) =
            (container.labels.get(labels::POD_UID), container.labels.get(labels::CONTAINER_NAME))
        else {
            continue;
        };
        if container.state == ContainerState::ContainerExited as i32 {
            by_name.entry((uid.clone(), name.clone())).or_default().push(container);
        }
    }
    let superseded = by_name.into_values().flat_map(|mut dead| {
        dead.sort_by_key(|c| std::cmp::Reverse((attempt(c), c.created_at)));
        dead.into_iter().skip(1)
    });
    futures::stream::iter(superseded)
        .for_each_concurrent(CONCURRENT, |old| async move {
            if let Err(error) = context.cri.remove_container(&old.id).await {
                warn!(%error, container = old.id, "cannot remove a dead container");
            }
        })
        .await;
    let mut newest: BTreeMap<String, (u32, i64)> = BTreeMap::new();
    let sandboxes = context.cri.list_pod_sandboxes(None).await?;
    for sandbox in &sandboxes {
        if let Some(uid) = sandbox.labels.get(labels::POD_UID) {
            let at = newest.entry(uid.clone()).or_default();
            *at = (*at).max(age(sandbox));
        }
    }
    let used: BTreeSet<&str> = containers.iter().map(|c| c.pod_sandbox_id.as_str()).collect();
    let dead = sandboxes.iter().filter(|s| s.state != 0 && !used.contains(s.id.as_str()));
    let superseded = dead.filter(|sandbox| {
        let newest = sandbox.labels.get(labels::POD_UID).and_then(|uid| newest.get(uid));
        newest.is_some_and(|newest| *newest > age(sandbox))
    });
    futures::stream::iter(superseded)
        .for_each_concurrent(CONCURRENT, |sandbox| async move {
            let stopped = context.cri.stop_pod_sandbox(&sandbox.id).await;
            let removed = match stopped {
                Ok(()) => context.cri.remove_pod_sandbox(&sandbox.id).await,
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                warn!(%error, sandbox = sandbox.id, "cannot remove a dead sandbox");
            }
        })
        .await;
    Ok(())
}

fn attempt(container: &Container) -> u32 {
    container.metadata.as_ref().map_or(0, |metadata| metadata.attempt)
}

/// Orders the sandboxes of a pod by age: first by attempt, which does not depend on the node's clock.
fn age(sandbox: &PodSandbox) -> (u32, i64) {
    (sandbox.metadata.as_ref().map_or(0, |metadata| metadata.attempt), sandbox.created_at)
}
