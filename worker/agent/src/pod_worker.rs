//! Runs the life cycle of one pod on this node: sync until it is over or deleted, stop it, clean up, wait
//! until its object is gone. One task for each pod, so all steps for a pod happen in order.
//!
//! ```text
//!   sync --(deleted, or all containers done)--> ending --(nothing runs)--> ended --(object gone)--> removed
//! ```

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use worker_volumes::PodLayout;

use crate::context::Context;
use crate::cri::snapshot::RuntimePod;
use crate::sync::{self, PodState, SyncOutcome, kill};
use crate::{Error, cgroups, pod, resources};

/// Maximum time between syncs without an event, against lost events. Up to half of it is added at random, so
/// that a node's pods do not sync all at once.
const RESYNC: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(2);

/// Desired state of a pod, from the API server.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Newest version of the pod object.
    pub pod: Arc<Pod>,
    /// Whether the object has been deleted from the API server.
    pub gone: bool,
}

impl Desired {
    fn ends(&self) -> bool {
        self.gone || pod::is_terminating(&self.pod)
    }
}

/// Task that manages one pod.
pub struct PodWorker {
    pub context: Arc<Context>,
    pub desired: watch::Receiver<Desired>,
    pub wake: Arc<Notify>,
    pub shutdown: CancellationToken,
}

impl PodWorker {
    /// Runs until the pod is gone from API server and node, or until `shutdown`, which leaves containers
    /// running.
    pub async fn run(mut self) {
        let shutdown = self.shutdown.clone();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = self.live() => {}
        }
    }

    async fn live(&mut self) {
        let mut state = PodState::default();
        let pod = self.desired.borrow().pod.clone();
        self.sync_until_over(&mut state).await;
        self.end(&mut state).await;
        self.tidy(&mut state).await;
        self.await_removal().await;
        let uid = pod::uid(&pod).to_owned();
        self.context.statuses.forget(&uid);
        self.context.pods.remove(&uid);
        debug!(pod = %pod::display(&pod), "pod removed");
    }

    async fn sync_until_over(&mut self, state: &mut PodState) {
        loop {
            let desired = self.desired.borrow_and_update().clone();
            if desired.ends() {
                return;
            }
            if pod::is_terminal_phase(pod::status(&desired.pod).phase.as_deref()) {
                // The pod ended before this agent knew it: none of its containers may start again.
                return;
            }
            let context = self.context.clone();
            // Ephemeral containers added later may reference more objects.
            context.objects.register(&desired.pod);
            let mut watcher = self.desired.clone();
            let outcome = tokio::select! {
                biased;
                _ = watcher.wait_for(Desired::ends) => return,
                outcome = sync::sync(&context, state, &desired.pod) => outcome,
            };
            let wake_at = match outcome {
                Ok(SyncOutcome::Over) => return,
                Ok(SyncOutcome::Settled(wake_at)) => wake_at,
                Err(error) => {
                    warn!(pod = %pod::display(&desired.pod), %error, "sync failed");
                    Some(Instant::now() + RETRY)
                }
            };
            let resync = Instant::now() + RESYNC + RESYNC.mul_f64(rand::random::<f64>() / 2.0);
            let wake_at = wake_at.map_or(resync, |at| at.min(resync));
            tokio::select! {
                biased;
                changed = self.desired.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(wake_at) => {}
            }
        }
    }

    /// Stops all containers of the pod; a new deletion with a shorter grace period shortens the current one.
    async fn end(&mut self, state: &mut PodState) {
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let context = self.context.clone();
            let grace = pod::grace_seconds(&desired.pod);
            let mut watcher = self.desired.clone();
            let shorter = async {
                let cut = watcher
                    .wait_for(|next| next.ends() && pod::grace_seconds(&next.pod) < grace)
                    .await
                    .is_ok();
                if !cut {
                    std::future::pending::<()>().await;
                }
            };
            let outcome = tokio::select! {
                biased;
                () = shorter => continue,
                outcome = end_once(&context, state, &desired.pod, grace) => outcome,
            };
            match outcome {
                Ok(()) => return,
                Err(error) => {
                    warn!(pod = %pod::display(&desired.pod), %error, "cannot end the pod yet");
                    context.events.pod_warning(
                        &desired.pod,
                        None,
                        "FailedKillPod",
                        format!("error killing pod: {error}"),
                    );
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Publishes the final status and removes volumes and cgroup, retrying until that succeeds.
    async fn tidy(&mut self, state: &mut PodState) {
        loop {
            let desired = self.desired.borrow().clone();
            match tidy_once(&self.context, state, &desired.pod).await {
                Ok(()) => return,
                Err(error) => {
                    warn!(pod = %pod::display(&desired.pod), %error, "cannot clean up the pod yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Deletes the pod object if it is terminating, waits until it is gone, then removes containers and logs.
    async fn await_removal(&mut self) {
        loop {
            let desired = self.desired.borrow_and_update().clone();
            if desired.gone {
                break;
            }
            if pod::is_terminating(&desired.pod) {
                self.context.statuses.delete_object(&desired.pod);
            }
            if self.desired.changed().await.is_err() {
                return;
            }
        }
        let pod = self.desired.borrow().pod.clone();
        while let Err(error) = remove_once(&self.context, &pod).await {
            warn!(pod = %pod::display(&pod), %error, "cannot remove the pod's containers yet");
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn end_once(context: &Context, state: &mut PodState, pod: &Arc<Pod>, grace: i64) -> Result<(), Error> {
    let runtime = sync::observe(context, state, pod).await?;
    if has_something_to_tell(pod, &runtime) {
        sync::publish(context, state, pod, &runtime, false);
    }
    context.probes.stop_killers(pod::uid(pod));
    if runtime.any_running() {
        info!(pod = %pod::display(pod), grace, "ending the pod");
    }
    kill::pod(context, pod, &runtime, grace).await?;
    let runtime = sync::observe(context, state, pod).await?;
    if runtime.any_running() {
        return Err(Error::Invalid("containers still run".to_owned()));
    }
    Ok(())
}

/// Returns whether the pod's status may be updated: a pod in a final phase that the runtime does not know
/// (refused, or ended long ago) keeps its status.
fn has_something_to_tell(pod: &Pod, runtime: &RuntimePod) -> bool {
    !pod::is_terminal_phase(pod::status(pod).phase.as_deref())
        || !runtime.sandboxes.is_empty()
        || !runtime.containers.is_empty()
}

async fn tidy_once(context: &Context, state: &mut PodState, pod: &Arc<Pod>) -> Result<(), Error> {
    let uid = pod::uid(pod).to_owned();
    let runtime = sync::observe(context, state, pod).await?;
    if has_something_to_tell(pod, &runtime) {
        sync::publish(context, state, pod, &runtime, true);
    }
    context.probes.reconcile(&uid, Vec::new());
    context.pods.set_active(&uid, false);
    let layout = PodLayout::new(&context.config.root_dir, &uid);
    let cgroup = resources::cgroup_parent(&context.config.cgroup_root, pod);
    blocking(move || {
        cgroups::remove(&cgroup);
        Ok(())
    })
    .await?;
    state.volumes.remove(layout).await?;
    context.objects.unregister(&uid);
    Ok(())
}

async fn remove_once(context: &Context, pod: &Pod) -> Result<(), Error> {
    let runtime = RuntimePod::read(&context.cri, pod::uid(pod)).await?;
    kill::remove_all(context, &runtime).await?;
    let logs = sync::sandbox::log_directory(&context.config, pod);
    let cgroup = resources::cgroup_parent(&context.config.cgroup_root, pod);
    blocking(move || {
        cgroups::remove(&cgroup);
        match std::fs::remove_dir_all(&logs) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", logs, error))
            }
            _ => Ok(()),
        }
    })
    .await
}

/// Runs file-system work that may block on a thread for blocking work.
async fn blocking(work: impl FnOnce() -> Result<(), Error> + Send + 'static) -> Result<(), Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::Invalid(error.to_string())),
    }
}
