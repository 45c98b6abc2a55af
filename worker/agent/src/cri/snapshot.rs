//! What the runtime has of one pod at one moment: the truth that syncs and statuses are computed from.

use std::collections::BTreeMap;

use k8s_cri::v1::{ContainerState, ContainerStatus, PodSandboxState, PodSandboxStatus};

use super::{Cri, labels};
use crate::Error;

/// Sandboxes and containers of a pod, newest first: by the attempt number each was made with, and only between equal ones by the
/// time, because the node's clock may be set back.
#[derive(Clone, Debug, Default)]
pub struct RuntimePod {
    /// Sandboxes.
    pub sandboxes: Vec<PodSandboxStatus>,
    /// Containers of all sandboxes.
    pub containers: Vec<ContainerStatus>,
    /// Container id to the id of its sandbox.
    pub sandbox_of: BTreeMap<String, String>,
}

impl RuntimePod {
    /// Asks the runtime for everything of the pod with this UID. What vanishes between two calls is left out.
    pub async fn read(cri: &Cri, uid: &str) -> Result<Self, Error> {
        let (sandboxes, containers) =
            futures::future::try_join(cri.list_pod_sandboxes(Some(uid)), cri.list_containers(Some(uid)))
                .await?;
        let mut pod = Self::default();
        for sandbox in sandboxes {
            pod.sandboxes.extend(present(cri.pod_sandbox_status(&sandbox.id).await)?);
        }
        for container in containers {
            pod.containers.extend(present(cri.container_status(&container.id).await)?);
            pod.sandbox_of.insert(container.id, container.pod_sandbox_id);
        }
        pod.sandboxes.sort_by_key(|s| {
            std::cmp::Reverse((s.metadata.as_ref().map_or(0, |metadata| metadata.attempt), s.created_at))
        });
        pod.containers.sort_by_key(|c| std::cmp::Reverse((restart_count(c), c.created_at)));
        Ok(pod)
    }

    /// The newest sandbox, ready or not.
    pub fn newest_sandbox(&self) -> Option<&PodSandboxStatus> {
        self.sandboxes.first()
    }

    /// The newest sandbox if it is ready.
    pub fn ready_sandbox(&self) -> Option<&PodSandboxStatus> {
        self.newest_sandbox().filter(|s| is_ready(s))
    }

    /// The newest container of this name.
    pub fn container(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|c| container_name(c) == name)
    }

    /// All containers of this name, newest first.
    pub fn containers_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a ContainerStatus> {
        self.containers.iter().filter(move |c| container_name(c) == name)
    }

    /// Whether any container runs.
    pub fn any_running(&self) -> bool {
        self.containers.iter().any(is_running)
    }

    /// Addresses of the pod, from its newest sandbox.
    pub fn ips(&self) -> Vec<String> {
        let Some(network) = self.ready_sandbox().and_then(|s| s.network.as_ref()) else { return Vec::new() };
        let more = network.additional_ips.iter().map(|ip| ip.ip.clone());
        std::iter::once(network.ip.clone()).chain(more).filter(|ip| !ip.is_empty()).collect()
    }
}

fn present<T>(answer: Result<Option<T>, Error>) -> Result<Option<T>, Error> {
    match answer {
        Err(error) if error.is_not_found() => Ok(None),
        other => other,
    }
}

/// The name a container has in its pod.
pub fn container_name(status: &ContainerStatus) -> &str {
    match status.labels.get(labels::CONTAINER_NAME) {
        Some(name) => name,
        None => status.metadata.as_ref().map_or("", |m| m.name.as_str()),
    }
}

/// Whether the container runs.
pub fn is_running(status: &ContainerStatus) -> bool {
    status.state == ContainerState::ContainerRunning as i32
}

/// Whether the container has ended.
pub fn is_exited(status: &ContainerStatus) -> bool {
    status.state == ContainerState::ContainerExited as i32
}

/// Whether the sandbox is ready.
pub fn is_ready(status: &PodSandboxStatus) -> bool {
    status.state == PodSandboxState::SandboxReady as i32
}

/// How often the container was restarted before this one.
pub fn restart_count(status: &ContainerStatus) -> u32 {
    let noted = status.annotations.get(labels::RESTART_COUNT).and_then(|count| count.parse().ok());
    noted.unwrap_or_else(|| status.metadata.as_ref().map_or(0, |m| m.attempt))
}
