//! Starts a worker for each pod of this node after node-side admission, and passes changes of the pod on to
//! it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use proto_env::supervise::supervise;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::context::Context;
use crate::pod_source::PodChange;
use crate::pod_worker::{Desired, PodWorker};
use crate::{admission, clock, pod, protection, status};

/// Handles pod changes until `shutdown`. `synced` is notified once the pods of the node are known.
pub async fn run(
    context: Arc<Context>,
    mut changes: mpsc::Receiver<PodChange>,
    synced: oneshot::Sender<()>,
    shutdown: CancellationToken,
) {
    let mut manager = Manager { context, workers: BTreeMap::new(), shutdown: shutdown.clone() };
    let mut synced = Some(synced);
    loop {
        let change = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            change = changes.recv() => change,
        };
        match change {
            Some(PodChange::Set(pod)) => manager.set(pod).await,
            Some(PodChange::Gone(pod)) => manager.gone(pod),
            Some(PodChange::Unreadable(uids)) => manager.context.pods.set_unreadable(uids),
            Some(PodChange::Synced) => {
                if let Some(synced) = synced.take() {
                    // The receiver no longer exists if the agent is stopping.
                    let _ = synced.send(());
                }
            }
            None => return,
        }
    }
}

struct Manager {
    context: Arc<Context>,
    workers: BTreeMap<String, watch::Sender<Desired>>,
    shutdown: CancellationToken,
}

impl Manager {
    async fn set(&mut self, pod: Arc<Pod>) {
        self.workers.retain(|_, worker| !worker.is_closed());
        let uid = pod::uid(&pod).to_owned();
        let wake = self.context.pods.upsert(&pod);
        if let Some(worker) = self.workers.get(&uid) {
            worker.send_replace(Desired { pod, gone: false });
            return;
        }
        if !self.admit(&pod).await {
            return;
        }
        let (sender, desired) = watch::channel(Desired { pod, gone: false });
        let (context, shutdown) = (self.context.clone(), self.shutdown.clone());
        // All state of a worker can be read again, so a worker that panicked is restarted.
        tokio::spawn(supervise("agent-pod-worker", move || {
            let (context, desired) = (context.clone(), desired.clone());
            PodWorker { context, desired, wake: wake.clone(), shutdown: shutdown.clone() }.run()
        }));
        self.workers.insert(uid, sender);
    }

    fn gone(&mut self, pod: Arc<Pod>) {
        let uid = pod::uid(&pod);
        // The sender is kept until the worker ends: a worker whose channel is closed could not tell this from
        // a change.
        match self.workers.get(uid).filter(|worker| !worker.is_closed()) {
            Some(worker) => {
                // Its containers may still end, but the scheduler has given its resources away, as kubelet does.
                self.context.pods.set_active(uid, false);
                worker.send_replace(Desired { pod, gone: true });
            }
            None => {
                self.context.statuses.forget(uid);
                self.context.pods.remove(uid);
            }
        }
    }

    /// Returns whether the pod may run on this node; a refused pod is marked Failed. A pod that has run, has
    /// ended or is terminating is not checked again.
    async fn admit(&self, pod: &Arc<Pod>) -> bool {
        let uid = pod::uid(pod);
        let over = pod::is_terminal_phase(pod::status(pod).phase.as_deref());
        if over || pod::is_terminating(pod) {
            return true;
        }
        let has_run = pod::status(pod).container_statuses.as_ref().is_some_and(|list| !list.is_empty());
        if !has_run {
            let all = self.context.pods.all();
            let active: Vec<&Pod> =
                all.iter().filter(|e| e.active && pod::uid(&e.pod) != uid).map(|e| e.pod.as_ref()).collect();
            let node = self.context.node.borrow().clone();
            let verdict = admission::admit(pod, node.as_deref(), &self.context.allocatable, &active)
                .and_then(|()| protection::admit(pod, &self.context.abilities));
            if let Err(rejection) = verdict {
                info!(pod = %pod::display(pod), reason = rejection.reason, "pod refused");
                let text = rejection.message.clone();
                self.context.events.pod_warning(pod, None, &rejection.reason, text);
                let failed = status::rejected(
                    pod,
                    &rejection.reason,
                    &rejection.message,
                    &clock::now(),
                    &self.context.node_ips,
                );
                self.context.statuses.set(pod, failed);
                return false;
            }
        }
        self.context.pods.set_active(uid, true);
        true
    }
}
