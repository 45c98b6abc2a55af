//! Removes what no pod needs: pods in the runtime and on disk that the API server does not know, and dead containers but the last of
//! each. Images are `image_gc`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::{Container, ContainerState};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use worker_volumes::{PodLayout, layout, unmount_pod_volumes};

use crate::context::Context;
use crate::cri::labels;
use crate::cri::snapshot::{RuntimePod, is_running};
use crate::image_gc::ImageCollector;
use crate::sync::kill;
use crate::{Error, cgroups};

const CONTAINER_PERIOD: Duration = Duration::from_secs(60);
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// Tidies each minute until `shutdown`; start it when the node's pods are known.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let mut images = ImageCollector::default();
    loop {
        if let Err(error) = orphans(&context).await {
            warn!(%error, "cannot remove orphaned pods");
        }
        if let Err(error) = dead_containers(&context).await {
            warn!(%error, "cannot remove dead containers");
        }
        if let Err(error) = images.collect(&context).await {
            warn!(%error, "cannot remove unused images");
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(CONTAINER_PERIOD) => {}
        }
    }
}

/// Ends and removes pods that the runtime has and the API server does not, and directories that neither has.
async fn orphans(context: &Context) -> Result<(), Error> {
    let sandboxes = context.cri.list_pod_sandboxes(None).await?;
    let containers = context.cri.list_containers(None).await?;
    let in_runtime = sandboxes.iter().map(|s| &s.labels).chain(containers.iter().map(|c| &c.labels));
    let uids: BTreeSet<String> =
        in_runtime.filter_map(|labels| labels.get(labels::POD_UID).cloned()).collect();
    for uid in uids.iter().filter(|uid| !context.pods.contains(uid)) {
        info!(uid, "ending a pod that the API server does not know");
        end_orphan(context, uid).await?;
    }
    let dirs = layout::pod_dirs(&context.config.root_dir)
        .map_err(|e| Error::io("list", context.config.root_dir.join("pods"), e))?;
    for uid in dirs.iter().filter(|uid| !context.pods.contains(uid)) {
        if let Err(error) = unmount_pod_volumes(&PodLayout::new(&context.config.root_dir, uid)) {
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

/// Of each container keeps the newest dead one, for its logs and its exit code; of a pod that was restarted whole, the newest sandbox.
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
    for dead in by_name.values_mut() {
        dead.sort_by_key(|c| std::cmp::Reverse(c.created_at));
        for old in dead.iter().skip(1) {
            context.cri.remove_container(&old.id).await?;
        }
    }
    let mut newest: BTreeMap<String, i64> = BTreeMap::new();
    let sandboxes = context.cri.list_pod_sandboxes(None).await?;
    for sandbox in &sandboxes {
        if let Some(uid) = sandbox.labels.get(labels::POD_UID) {
            let at = newest.entry(uid.clone()).or_default();
            *at = (*at).max(sandbox.created_at);
        }
    }
    let used: BTreeSet<&str> = containers.iter().map(|c| c.pod_sandbox_id.as_str()).collect();
    for sandbox in sandboxes.iter().filter(|s| s.state != 0 && !used.contains(s.id.as_str())) {
        let superseded = sandbox
            .labels
            .get(labels::POD_UID)
            .and_then(|uid| newest.get(uid))
            .is_some_and(|at| *at > sandbox.created_at);
        if superseded {
            context.cri.stop_pod_sandbox(&sandbox.id).await?;
            context.cri.remove_pod_sandbox(&sandbox.id).await?;
        }
    }
    Ok(())
}
