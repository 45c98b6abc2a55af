//! Restores the state of an earlier run: reads its records and reconnects to shims that still run.

use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::Service;
use crate::container::{Container, ContainerProgress, ContainerRecord};
use crate::files;
use crate::paths::{container_file, sandbox_file};
use crate::sandbox::{Sandbox, SandboxRecord};
use crate::shim::client::ShimClient;
use crate::shim::plan::{ExitRecord, now};

impl Service {
    /// Reads all records, and follows the shims that still run; cleans up after those that are gone.
    pub(crate) async fn restore(&self) -> std::io::Result<()> {
        for (id, record) in records::<SandboxRecord>(&self.paths.sandboxes_root(), sandbox_file::RECORD)? {
            let shim = ShimClient::new(self.paths.sandbox_state(&id));
            let metadata = record.metadata();
            let name =
                format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt);
            let sandbox = Arc::new(Sandbox::new(record, shim));
            let mut tables = self.tables();
            tables.names.insert(name, id.clone());
            tables.sandboxes.insert(id, sandbox);
        }
        for (id, record) in records::<ContainerRecord>(&self.paths.containers_root(), container_file::RECORD)?
        {
            self.restore_container(id, record);
        }
        for sandbox in self.sandboxes() {
            let record = sandbox.record();
            if !record.ready {
                continue;
            }
            if !sandbox.shim.is_alive() {
                tracing::warn!(sandbox = record.id, "the pod's shim is gone");
                self.shim_gone(&sandbox).await;
            } else if let Err(error) = sandbox.shim.check_protocol() {
                tracing::error!(sandbox = record.id, %error, "the pod keeps running, but cannot be managed");
            } else {
                self.resettle_created(&record.id);
                self.resume_starts(&record.id);
                self.watch_shim(sandbox);
            }
        }
        let (sandboxes, containers) = (self.sandboxes().len(), self.containers().len());
        tracing::info!(sandboxes, containers, "runtime state restored");
        Ok(())
    }

    fn restore_container(&self, id: String, record: ContainerRecord) {
        let root = self.paths.container_root(&id);
        let progress = ContainerProgress {
            unsure: false,
            started: readable(&id, &root.join(container_file::STARTED)),
            exit: readable(&id, &root.join(container_file::EXIT)),
        };
        let shim = ShimClient::new(self.paths.sandbox_state(&record.sandbox_id));
        let mut tables = self.tables();
        let owner =
            tables.sandboxes.get(&record.sandbox_id).map(|s| s.record().metadata()).unwrap_or_default();
        let own = record.config.metadata.clone().unwrap_or_default();
        let name = format!("{}_{}_{}_{}_{}", own.name, owner.name, owner.namespace, owner.uid, own.attempt);
        tables.names.insert(name, id.clone());
        tables.containers.insert(id, Arc::new(Container::new(record, progress, shim)));
    }

    /// Repeats start requests of an earlier run that were not answered.
    fn resume_starts(&self, sandbox: &str) {
        for container in self.containers_of(sandbox) {
            let created =
                container.progress.borrow().state() == k8s_cri::v1::ContainerState::ContainerCreated;
            if created && self.was_starting(&container) {
                self.await_start(container);
            }
        }
    }

    /// Marks a created container as ended if its plan is gone (the volatile directory was
    /// emptied): it can never be started.
    fn resettle_created(&self, sandbox: &str) {
        for container in self.containers_of(sandbox) {
            let created =
                container.progress.borrow().state() == k8s_cri::v1::ContainerState::ContainerCreated;
            if created && !self.paths.container_state(container.id()).join(container_file::PLAN).exists() {
                let message = "the container's plan is gone".to_owned();
                self.ended(
                    &container,
                    ExitRecord { exit_code: 255, finished_at: now(), reason: "Unknown".into(), message },
                );
            }
        }
    }
}

/// Reads a container's start or exit record; `None` if there is none, or if it cannot be read: the shim, which
/// is asked to start the container again, knows whether it runs.
fn readable<T: DeserializeOwned>(container: &str, path: &Path) -> Option<T> {
    files::read_json(path).unwrap_or_else(|error| {
        tracing::error!(container, path = %path.display(), %error, "a record cannot be read");
        None
    })
}

/// Returns the records in `directory/ID/FILE` with their ids. Removes a directory without a record, which an
/// interrupted creation or removal left.
fn records<T: DeserializeOwned>(directory: &Path, file: &str) -> std::io::Result<Vec<(String, T)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let id = entry.file_name().to_string_lossy().into_owned();
        match files::read_json(&entry.path().join(file)) {
            Ok(Some(record)) => found.push((id, record)),
            Ok(None) => files::remove_tree(&entry.path())?,
            Err(error) => {
                tracing::error!(id, %error, "a record cannot be read; the pod or container it describes is not managed")
            }
        }
    }
    Ok(found)
}
