//! What the runtime knows of a container, and the OCI specification made from it.

mod capabilities;
mod devices;
mod mounts;
pub(crate) mod security;
mod spec;

use std::path::PathBuf;

use k8s_cri::v1;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use crate::shim::client::ShimClient;
use crate::shim::plan::{ExitRecord, StartedRecord};

pub(crate) use mounts::propagation;
pub(crate) use spec::{SpecInput, build};

/// Why a container cannot be made as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("no command specified")]
    NoCommand,
    #[error("unknown capability to add or drop: \"{0}\"")]
    Capability(String),
    #[error("failed to generate spec: device \"{path}\": {source}")]
    Device { path: String, source: std::io::Error },
    #[error("failed to generate container mounts: \"{path}\": {source}")]
    Mount { path: String, source: std::io::Error },
    #[error("{0}")]
    Unsupported(&'static str),
}

/// A container as asked for, on disk from creation to removal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub id: String,
    pub sandbox_id: String,
    pub config: v1::ContainerConfig,
    /// The image's id.
    pub image_id: String,
    /// The image by digest, or its id.
    pub image_ref: String,
    /// Layers that the root file system stands on.
    pub layers: Vec<String>,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// The log file; `None` if the output is not logged.
    pub log_path: Option<PathBuf>,
    /// Number of the signal that asks the process to end.
    pub stop_signal: i32,
    /// The container's cgroup, relative to the root of each hierarchy.
    pub cgroup: PathBuf,
}

/// What a container has been through: nothing yet, its start, its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Whether the shim was asked to start the container and has not answered: it may run.
    pub unsure: bool,
    pub started: Option<StartedRecord>,
    pub exit: Option<ExitRecord>,
}

impl Progress {
    pub fn state(&self) -> v1::ContainerState {
        match (&self.started, &self.exit) {
            (_, Some(_)) => v1::ContainerState::ContainerExited,
            (Some(_), None) => v1::ContainerState::ContainerRunning,
            // Kubernetes kills what is in this state before it starts another container in its place.
            (None, None) if self.unsure => v1::ContainerState::ContainerUnknown,
            (None, None) => v1::ContainerState::ContainerCreated,
        }
    }

    pub fn is_running(&self) -> bool {
        self.started.is_some() && self.exit.is_none()
    }
}

/// A container that this runtime knows, with what became of it and its locks.
pub(crate) struct Container {
    pub record: ContainerRecord,
    pub progress: watch::Sender<Progress>,
    /// The resource limits as last set, at creation or by an update.
    pub resources: std::sync::Mutex<Option<v1::LinuxContainerResources>>,
    pub shim: ShimClient,
    /// Held while the container is started, updated or removed.
    pub gate: Mutex<()>,
}

impl Container {
    pub fn new(record: ContainerRecord, progress: Progress, shim: ShimClient) -> Self {
        let resources = record.config.linux.as_ref().and_then(|linux| linux.resources.clone());
        Self {
            record,
            progress: watch::Sender::new(progress),
            resources: std::sync::Mutex::new(resources),
            shim,
            gate: Mutex::new(()),
        }
    }

    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// Resolves once it is known whether the container was started.
    pub async fn settled(&self) {
        let mut progress = self.progress.subscribe();
        // The sender is in `self`: it cannot be gone.
        let _ = progress.wait_for(|p| !p.unsure || p.exit.is_some()).await;
    }

    /// Resolves once the container has ended.
    pub async fn ended(&self) {
        let mut progress = self.progress.subscribe();
        // The sender is in `self`: it cannot be gone.
        let _ = progress.wait_for(|p| p.exit.is_some()).await;
    }
}
