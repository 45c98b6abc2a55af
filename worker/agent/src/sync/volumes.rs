//! The volumes of one pod, as used by its worker: set up before the first container starts, then refreshed in
//! the background. A volume that has been set up stays usable even if the API server is unreachable or its
//! objects are deleted: containers of a running pod are restarted with the content on the node.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::task::JoinHandle;
use worker_volumes::pod_fields::PodFields;
use worker_volumes::{
    MountedVolume, PodLayout, SetUpResult, VolumeLock, mount_pod_volumes, unmount_pod_volumes,
};

use crate::context::Context;
use crate::{Error, pod};

/// State of a pod's volumes, kept by the pod's worker.
#[derive(Debug, Default)]
pub struct PodVolumes {
    lock: VolumeLock,
    /// All volumes of the pod by name; `None` until every one has been set up.
    usable: Option<BTreeMap<String, MountedVolume>>,
    /// Background task that refreshes the volumes; `None` before the first refresh.
    refresh: Option<JoinHandle<()>>,
}

impl PodVolumes {
    /// Returns the pod's volumes by name. The first call sets them up and fails if a volume cannot be set up;
    /// later calls return at once and start a refresh unless one is running. Errors of a refresh become
    /// events.
    pub async fn usable(
        &mut self,
        context: &Arc<Context>,
        pod: &Arc<Pod>,
        ips: Vec<String>,
    ) -> Result<BTreeMap<String, MountedVolume>, Error> {
        if let Some(usable) = &self.usable {
            if self.refresh.as_ref().is_none_or(JoinHandle::is_finished) {
                let (context, pod, lock) = (context.clone(), pod.clone(), self.lock.clone());
                self.refresh = Some(tokio::spawn(async move {
                    set_up(&context, &pod, &lock, &ips).await;
                }));
            }
            return Ok(usable.clone());
        }
        let mut result = set_up(context, pod, &self.lock, &ips).await;
        if let Some(at) = result.errors.iter().position(|(name, _)| !result.mounted.contains_key(name)) {
            let (volume, source) = result.errors.swap_remove(at);
            return Err(Error::Volume { volume, source });
        }
        self.usable = Some(result.mounted.clone());
        Ok(result.mounted)
    }

    /// Returns the lock that must be held while files of the pod's volumes are used.
    pub fn lock(&self) -> VolumeLock {
        self.lock.clone()
    }

    /// Stops the refresh, unmounts the volumes and removes the pod's directory.
    pub async fn remove(&mut self, layout: PodLayout) -> Result<(), Error> {
        if let Some(refresh) = self.refresh.take() {
            refresh.abort();
        }
        let removed = self.lock.run(move || unmount_pod_volumes(&layout)).await;
        removed.map_err(|source| Error::Volume { volume: String::new(), source })
    }
}

impl Drop for PodVolumes {
    fn drop(&mut self) {
        if let Some(refresh) = &self.refresh {
            refresh.abort();
        }
    }
}

/// Sets up the volumes, or brings them up to date. Each error becomes a FailedMount event.
async fn set_up(context: &Context, pod: &Pod, lock: &VolumeLock, ips: &[String]) -> SetUpResult {
    let layout = PodLayout::new(&context.config.root_dir, pod::uid(pod));
    let fields =
        PodFields { pod, host_ips: &context.node_ips, pod_ips: ips, allocatable: &context.allocatable };
    let result = mount_pod_volumes(&layout, lock, fields, context.objects.as_ref()).await;
    for (volume, error) in &result.errors {
        let message = format!("MountVolume.SetUp failed for volume \"{volume}\" : {error}");
        context.events.pod_warning(pod, None, "FailedMount", message);
    }
    result
}
