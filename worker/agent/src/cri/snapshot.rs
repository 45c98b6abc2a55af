//! A snapshot of one pod in the runtime, from which syncs and statuses are computed.

use std::collections::BTreeMap;

use k8s_cri::v1::{ContainerState, ContainerStatus, PodSandboxState, PodSandboxStatus};

use super::{Cri, labels};
use crate::Error;

/// Sandboxes and containers of a pod, newest first: ordered by attempt number, and by time only if that is
/// equal, because the node's clock may be set back.
#[derive(Clone, Debug, Default)]
pub struct RuntimePod {
    /// Sandboxes of the pod, newest first.
    pub sandboxes: Vec<PodSandboxStatus>,
    /// Containers of all its sandboxes, newest first.
    pub containers: Vec<ContainerStatus>,
    /// Sandbox id of each container, by container id.
    pub sandbox_of: BTreeMap<String, String>,
}

impl RuntimePod {
    /// Reads everything the runtime has of the pod with this UID. Objects that vanish between two calls are
    /// left out.
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

    /// Returns the newest sandbox, ready or not; `None` if there is none.
    pub fn newest_sandbox(&self) -> Option<&PodSandboxStatus> {
        self.sandboxes.first()
    }

    /// Returns the newest sandbox; `None` if it is not ready.
    pub fn ready_sandbox(&self) -> Option<&PodSandboxStatus> {
        self.newest_sandbox().filter(|s| is_ready(s))
    }

    /// Returns the newest container of this name.
    pub fn container(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|c| container_name(c) == name)
    }

    /// Returns all containers of this name, newest first.
    pub fn containers_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a ContainerStatus> {
        self.containers.iter().filter(move |c| container_name(c) == name)
    }

    /// Returns whether any container runs.
    pub fn any_running(&self) -> bool {
        self.containers.iter().any(is_running)
    }

    /// Returns the IP addresses of the pod's newest sandbox; empty if it is not ready.
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

/// Returns the container's name in the pod specification.
pub fn container_name(status: &ContainerStatus) -> &str {
    match status.labels.get(labels::CONTAINER_NAME) {
        Some(name) => name,
        None => status.metadata.as_ref().map_or("", |m| m.name.as_str()),
    }
}

/// Returns whether the container runs.
pub fn is_running(status: &ContainerStatus) -> bool {
    status.state == ContainerState::ContainerRunning as i32
}

/// Returns whether the container has exited.
pub fn is_exited(status: &ContainerStatus) -> bool {
    status.state == ContainerState::ContainerExited as i32
}

/// Returns whether the sandbox is ready.
pub fn is_ready(status: &PodSandboxStatus) -> bool {
    status.state == PodSandboxState::SandboxReady as i32
}

/// Returns how often the container had been restarted when this one was created.
pub fn restart_count(status: &ContainerStatus) -> u32 {
    let noted = status.annotations.get(labels::RESTART_COUNT).and_then(|count| count.parse().ok());
    noted.unwrap_or_else(|| status.metadata.as_ref().map_or(0, |m| m.attempt))
}
