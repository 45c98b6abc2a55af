//! Receives ends of containers from shims and publishes events to the subscribers of CRI's event stream.

use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1;
use tokio::sync::broadcast;

use super::Service;
use crate::container::Container;
use crate::files;
use crate::paths::container_file;
use crate::sandbox::Sandbox;
use crate::shim::plan::{ExitRecord, now};

/// Pause between attempts to reach a shim that runs but does not answer.
pub(super) const RETRY: Duration = Duration::from_millis(500);

impl Service {
    /// Follows a pod's shim, in a task of its own, until the shim has ended.
    pub(super) fn watch_shim(&self, sandbox: Arc<Sandbox>) {
        let service = self.clone();
        tokio::spawn(proto_env::supervise::supervise("runtime-shim-watch", move || {
            service.clone().follow_shim(sandbox.clone())
        }));
    }

    async fn follow_shim(self, sandbox: Arc<Sandbox>) {
        let id = sandbox.record().id;
        loop {
            match sandbox.shim.watch().await {
                Ok(mut watch) => {
                    // Ends from before the subscription are read from disk.
                    self.read_exits(&id);
                    while let Ok(ended) = watch.next().await {
                        if let Ok(container) = self.container(&ended.container) {
                            self.ended(&container, ended.exit);
                        }
                    }
                }
                Err(error) if sandbox.shim.has_gone(&error) => break,
                // A shim that is only slow is asked again.
                Err(error) => {
                    if sandbox.record().ready {
                        tracing::warn!(sandbox = id, %error, "the pod's shim cannot be watched");
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
            if self.sandbox(&id).is_err() {
                return;
            }
        }
        self.shim_gone(&sandbox).await;
    }

    /// Records the ends that the pod's shim has written to disk.
    pub(super) fn read_exits(&self, sandbox: &str) {
        for container in self.containers_of(sandbox) {
            let path = self.paths.container_root(container.id()).join(container_file::EXIT);
            match files::read_json::<ExitRecord>(&path) {
                Ok(Some(exit)) => self.ended(&container, exit),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(container = container.id(), %error, "the exit record cannot be read")
                }
            }
        }
    }

    /// Records a container's end; does nothing if that has been done.
    pub(super) fn ended(&self, container: &Container, exit: ExitRecord) {
        let changed = container.progress.send_if_modified(|progress| {
            let news = progress.exit.is_none();
            if news {
                progress.exit = Some(exit);
            }
            news
        });
        if changed {
            let record = &container.record;
            tracing::debug!(container = record.id, "container ended");
            self.publish(&record.sandbox_id, &record.id, v1::ContainerEventType::ContainerStoppedEvent);
        }
    }

    /// Publishes an event about a container, or about a sandbox under its own id.
    pub(super) fn publish(&self, sandbox: &str, container: &str, kind: v1::ContainerEventType) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let containers = self.containers_of(sandbox);
        let event = v1::ContainerEventResponse {
            container_id: container.to_owned(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: self.sandbox_status(sandbox).ok(),
            containers_statuses: containers.iter().map(|c| self.container_status(c)).collect(),
        };
        // Sending fails only if there is no subscriber.
        let _ = self.events.send(event);
    }

    /// Subscribes to the events that [`Service::publish`] publishes.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<v1::ContainerEventResponse> {
        self.events.subscribe()
    }
}
