//! Whether this node can run pods, as kubelet judges it: the runtime answered lately, says that it and its network are ready, and its
//! containers are being watched. The verdict goes to the masters with the beats and into the Node's Ready condition.

use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::RuntimeCondition;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cri::Cri;

/// How often the runtime is asked.
const PERIOD: Duration = Duration::from_secs(5);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Without a good answer for this long the runtime is down.
const DOWN_AFTER: Duration = Duration::from_secs(30);
/// Without a comparison of what runs for this long nobody notices that a container ended (kubelet's PLEG).
const UNWATCHED_AFTER: Duration = Duration::from_secs(180);

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeHealth {
    /// Whether the node is ready for pods.
    pub ready: bool,
    /// Why not; empty for a ready node. The message of the Ready condition.
    pub reason: String,
}

impl Default for NodeHealth {
    /// Nothing is known against the node yet.
    fn default() -> Self {
        Self { ready: true, reason: String::new() }
    }
}

/// When the lists of what runs were compared last; clones share the time.
#[derive(Clone, Debug)]
pub struct LastRelist(Arc<watch::Sender<Instant>>);

impl Default for LastRelist {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Instant::now())))
    }
}

impl LastRelist {
    /// Notes that the lists were compared.
    pub fn done(&self) {
        self.0.send_replace(Instant::now());
    }
}

/// What is known of the runtime between two answers.
struct Monitor {
    /// When it said last that it is ready.
    ready_at: Instant,
    runtime: Option<String>,
    network: Option<String>,
}

/// Asks the runtime every few seconds until `shutdown` and publishes the verdict.
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
            Ok(Err(error)) => warn!(%error, "the container runtime does not tell its status"),
            Err(_) => warn!("the container runtime does not tell its status in time"),
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
