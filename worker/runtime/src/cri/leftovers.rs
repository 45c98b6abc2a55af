//! Cleans up after a pod whose shim is gone: processes without a parent, unanswered start requests, and a
//! network that was not released.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::sandboxes::{netns, pod_ref};
use super::{Service, blocking};
use crate::cleanup;
use crate::container::Container;
use crate::files;
use crate::paths::container_file;
use crate::sandbox::Sandbox;
use crate::shim::plan::{ExitRecord, now};

/// Pause between two checks for networks that were not released.
const TIDY_PERIOD: Duration = Duration::from_secs(60);

impl Service {
    /// Handles the end of a pod's shim, because the pod was stopped, the node was rebooted or the shim
    /// was killed: kills the remaining processes and releases the network, so that another sandbox can
    /// use the pod's host ports.
    pub(super) async fn shim_gone(&self, sandbox: &Arc<Sandbox>) {
        let id = sandbox.record().id;
        self.read_exits(&id);
        self.end_leftovers(sandbox).await;
        if sandbox.record().ready
            && let Err(error) = self.save(sandbox, |record| record.ready = false).await
        {
            tracing::error!(sandbox = id, %error, "the sandbox cannot be recorded as not ready");
        }
        if let Err(error) = self.release_network(sandbox).await {
            tracing::warn!(sandbox = id, %error, "the sandbox's network will be released later");
        }
    }

    /// Kills the remaining processes of a pod without a shim and records the ends of its containers.
    pub(super) async fn end_leftovers(&self, sandbox: &Arc<Sandbox>) {
        let id = sandbox.record().id;
        let containers = self.containers_of(&id);
        // A launcher that outlives its shim would still start its container.
        let mut directories: Vec<PathBuf> =
            containers.iter().map(|c| self.paths.container_state(c.id())).collect();
        directories.push(self.paths.sandbox_state(&id));
        let launchers =
            blocking(move || cleanup::shims(|directory| directories.iter().any(|d| directory == d))).await;
        for pid in launchers.into_iter().flat_map(Result::unwrap_or_default) {
            // A process that has ended meanwhile needs no signal.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        join_all(containers.iter().map(|container| self.end_leftover(container))).await;
    }

    async fn end_leftover(&self, container: &Arc<Container>) {
        let progress = container.progress.borrow().clone();
        if !(progress.started.is_some() || self.was_starting(container)) {
            return;
        }
        // Also for a container with an exit record: a start that failed because its shim died may have
        // left a process.
        let cgroup = self.hierarchies.cgroup(&container.record.cgroup);
        if let Ok(Err(error)) = blocking(move || cgroup.kill_all()).await {
            tracing::error!(container = container.id(), %error, "the remaining processes of a container keep running");
        }
        if progress.exit.is_some() {
            return;
        }
        tracing::warn!(container = container.id(), "the container's shim is gone");
        let message = "the container's shim is gone".to_owned();
        self.record_end(
            container,
            ExitRecord { exit_code: 255, finished_at: now(), reason: "Unknown".into(), message },
        );
    }

    /// Returns whether a shim was asked to start the container, now or in an earlier run of this program.
    pub(super) fn was_starting(&self, container: &Container) -> bool {
        self.paths.container_root(container.id()).join(container_file::STARTING).exists()
    }

    /// Records a container's end. Failing to write it to disk is only logged: the container counts as ended.
    pub(super) fn record_end(&self, container: &Container, exit: ExitRecord) {
        let path = self.paths.container_root(container.id()).join(container_file::EXIT);
        if let Err(error) = files::replace_json(&path, &exit) {
            tracing::error!(container = container.id(), %error, "the exit cannot be recorded");
        }
        self.ended(container, exit);
    }

    /// Releases the sandbox's address and host ports; does nothing if that has been done.
    pub(super) async fn release_network(&self, sandbox: &Sandbox) -> Result<(), Status> {
        let record = sandbox.record();
        if !record.attached {
            return Ok(());
        }
        let state = self.paths.sandbox_state(&record.id);
        let detached = self.network.detach(&pod_ref(&record), &netns(&state)).await;
        let failed =
            |e| Status::unknown(format!("failed to destroy network for sandbox \"{}\": {e}", record.id));
        detached.map_err(failed)?;
        let freed = self.save(sandbox, |record| {
            record.attached = false;
            record.addresses.clear();
        });
        if let Err(error) = freed.await {
            // If the record still says "attached" after a restart, detaching again is harmless.
            tracing::warn!(sandbox = record.id, %error, "the sandbox cannot be recorded as detached");
        }
        Ok(())
    }

    /// Periodically releases, until `shutdown`, networks that were left attached: those of ended sandboxes
    /// that could not be detached, and those of sandboxes without a record.
    pub(crate) async fn tidy_networks(self, shutdown: CancellationToken) {
        loop {
            self.tidy_networks_once().await;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(TIDY_PERIOD) => {}
            }
        }
    }

    pub(super) async fn tidy_networks_once(&self) {
        for sandbox in self.sandboxes() {
            // A sandbox whose gate is held is being started, or stopped, which releases its network.
            let Ok(_gate) = sandbox.gate.try_lock() else { continue };
            let record = sandbox.record();
            if record.attached
                && !record.ready
                && !sandbox.shim.is_alive()
                && let Err(error) = self.release_network(&sandbox).await
            {
                tracing::warn!(sandbox = record.id, %error, "a dead sandbox keeps its network");
            }
        }
        // Attaching is locked out meanwhile: a new sandbox that is not yet in the list would lose its
        // address.
        let _nobody_attaches = self.attaching.write().await;
        let records = self.sandboxes().into_iter().map(|sandbox| sandbox.record());
        let live: BTreeSet<String> =
            records.filter(|record| record.attached).map(|record| record.id).collect();
        match self.network.retain(&live).await {
            Ok(0) => {}
            Ok(count) => tracing::warn!(count, "addresses of unknown sandboxes are free again"),
            Err(error) => tracing::warn!(%error, "addresses of unknown sandboxes are not free yet"),
        }
    }
}
