//! The runtime's state of a container; the submodules make its OCI specification.

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

/// Why a container cannot be created as requested.
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
    #[error(transparent)]
    Seccomp(#[from] crate::shim::seccomp::localhost::Error),
    #[error("{0}")]
    Unsupported(&'static str),
}

/// The requested configuration of a container, on disk from its creation to its removal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub id: String,
    pub sandbox_id: String,
    pub config: v1::ContainerConfig,
    /// Id of the image.
    pub image_id: String,
    /// The image's name by digest, or its id if it has none.
    pub image_ref: String,
    /// Names of the image layers that the root file system consists of.
    pub layers: Vec<String>,
    /// Creation time in nanoseconds since 1970.
    pub created_at: i64,
    /// Path of the log file; `None` if the output is not logged.
    pub log_path: Option<PathBuf>,
    /// Number of the stop signal.
    pub stop_signal: i32,
    /// Path of the container's cgroup, relative to the root of each hierarchy.
    pub cgroup: PathBuf,
}

/// Progress of a container: created, started or ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct ContainerProgress {
    /// Whether a start request is unanswered, so that the container may run.
    pub unsure: bool,
    pub started: Option<StartedRecord>,
    pub exit: Option<ExitRecord>,
}

impl ContainerProgress {
    pub fn state(&self) -> v1::ContainerState {
        match (&self.started, &self.exit) {
            (_, Some(_)) => v1::ContainerState::ContainerExited,
            (Some(_), None) => v1::ContainerState::ContainerRunning,
            // The kubelet kills a container in state Unknown before it starts a replacement.
            (None, None) if self.unsure => v1::ContainerState::ContainerUnknown,
            (None, None) => v1::ContainerState::ContainerCreated,
        }
    }

    pub fn is_running(&self) -> bool {
        self.started.is_some() && self.exit.is_none()
    }
}

/// A container of this runtime, with its progress and its locks.
pub(crate) struct Container {
    pub record: ContainerRecord,
    pub progress: watch::Sender<ContainerProgress>,
    /// Resource limits as last set, at creation or by an update.
    pub resources: std::sync::Mutex<Option<v1::LinuxContainerResources>>,
    pub shim: ShimClient,
    /// Held while the container is started, updated or removed.
    pub gate: Mutex<()>,
}

impl Container {
    pub fn new(record: ContainerRecord, progress: ContainerProgress, shim: ShimClient) -> Self {
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

    /// Waits until it is known whether the container was started.
    pub async fn settled(&self) {
        let mut progress = self.progress.subscribe();
        // Waiting cannot fail, because `self` owns the sender.
        let _ = progress.wait_for(|p| !p.unsure || p.exit.is_some()).await;
    }

    /// Waits until the container has ended.
    pub async fn ended(&self) {
        let mut progress = self.progress.subscribe();
        // Waiting cannot fail, because `self` owns the sender.
        let _ = progress.wait_for(|p| p.exit.is_some()).await;
    }
}
