//! Decides whether this node can run pods, as kubelet does: the runtime has answered recently, reports itself
//! and its network ready, and its containers are being watched. The result goes to the masters with the
//! heartbeats, and into the Node's Ready condition.

use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::RuntimeCondition;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cri::Cri;

/// Pause between status requests to the runtime.
const PERIOD: Duration = Duration::from_secs(5);
/// Deadline of one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time without a Ready answer after which the runtime counts as down.
const DOWN_AFTER: Duration = Duration::from_secs(30);
/// Time without a comparison of the runtime's lists after which ended containers may go unnoticed (kubelet's
/// PLEG).
const UNWATCHED_AFTER: Duration = Duration::from_secs(180);

/// Health of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeHealth {
    /// Whether the node is ready to run pods.
    pub ready: bool,
    /// Message of the Ready condition if the node is not ready; empty if it is.
    pub reason: String,
}

impl Default for NodeHealth {
    /// Assumes that the node is ready, before the first check.
    fn default() -> Self {
        Self { ready: true, reason: String::new() }
    }
}

/// Time at which the runtime's lists were last compared; clones share it.
#[derive(Clone, Debug)]
pub struct LastRelist(Arc<watch::Sender<Instant>>);

impl Default for LastRelist {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Instant::now())))
    }
}

impl LastRelist {
    /// Records that the lists have just been compared.
    pub fn done(&self) {
        self.0.send_replace(Instant::now());
    }
}

/// The runtime's last known state.
struct Monitor {
    /// Time at which the runtime last reported that it is ready.
    ready_at: Instant,
    runtime: Option<String>,
    network: Option<String>,
}

/// Asks the runtime for its status every few seconds until `shutdown`, and publishes the node's health.
pub async fn watch(
    cri: Cri,
    relist: LastRelist,
    health: watch::Sender<NodeHealth>,
    shutdown: CancellationToken,
) {
    let mut monitor = Monitor { ready_at: Instant::now(), runtime: None, network: None };
    loop {
        let answer = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            answer = tokio::time::timeout(PATIENCE, cri.status()) => answer,
        };
        match answer {
            Ok(Ok(status)) => monitor.note(&status.status.unwrap_or_default().conditions),
            Ok(Err(error)) => warn!(%error, "the container runtime does not report its status"),
            Err(_) => warn!("the container runtime does not report its status in time"),
        }
        let verdict = monitor.verdict(Instant::now(), *relist.0.borrow());
        if *health.borrow() != verdict {
            info!(ready = verdict.ready, reason = verdict.reason, "health of the node");
            health.send_replace(verdict);
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

impl Monitor {
    fn note(&mut self, conditions: &[RuntimeCondition]) {
        let problem = |name: &str, what: &str| match conditions.iter().find(|c| c.r#type == name) {
            Some(condition) if condition.status => None,
            Some(c) => {
                Some(format!("{what} not ready: {name}=false reason:{} message:{}", c.reason, c.message))
            }
            None => Some(format!("{what} not ready: <nil>")),
        };
        self.network = problem("NetworkReady", "container runtime network");
        self.runtime = problem("RuntimeReady", "container runtime");
        if self.runtime.is_none() {
            self.ready_at = Instant::now();
        }
    }

    fn verdict(&self, now: Instant, relisted: Instant) -> NodeHealth {
        let mut problems = Vec::new();
        if now.saturating_duration_since(self.ready_at) > DOWN_AFTER {
            problems.push("container runtime is down".to_owned());
        }
        let unwatched = now.saturating_duration_since(relisted);
        if unwatched > UNWATCHED_AFTER {
            let seconds = unwatched.as_secs();
            problems.push(format!(
                "PLEG is not healthy: pleg was last seen active {}m{}s ago; threshold is 3m0s",
                seconds / 60,
                seconds % 60
            ));
        }
        problems.extend(self.runtime.clone());
        problems.extend(self.network.clone());
        let reason = match problems.as_slice() {
            [] => String::new(),
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        NodeHealth { ready: problems.is_empty(), reason }
    }
}
