//! Node liveness, in memory: workers beat over a stream to the leader, and only
//! transitions of the Ready condition are written, through the API. The
//! node-lifecycle controller reacts to those. `peer.rs` feeds beats in,
//! `leader.rs` runs [`watch_nodes`] while this master leads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use master_client::Informers;
use proto_env::Clock;
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// How often silent nodes are looked for.
const SCAN_INTERVAL: Duration = Duration::from_millis(250);
/// How long one status write may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the agent said last, and when it was heard.
#[derive(Debug, Clone)]
struct Beat {
    /// On the monotonic clock.
    heard: Duration,
    ready: bool,
    reason: String,
}

/// The beats of all nodes.
pub struct Liveness {
    clock: Arc<dyn Clock>,
    beats: Mutex<BTreeMap<String, Beat>>,
}

/// What the Ready condition of a node should become.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Keep,
    Unknown,
    Ready,
    NotReady(String),
}

impl Liveness {
    /// No node has been heard yet.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, beats: Mutex::default() })
    }

    /// A node has beaten.
    pub fn beat(&self, node: &str, ready: bool, reason: &str) {
        let beat = Beat { heard: self.clock.monotonic(), ready, reason: reason.to_owned() };
        self.lock().insert(node.to_owned(), beat);
    }

    /// A new leader has heard nobody: every node gets one full window from now.
    fn reset(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Beat>> {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_others(&self, nodes: &[Arc<Node>]) {
        self.lock().retain(|name, _| nodes.iter().any(|n| n.name_any() == *name));
    }

    /// Compares what was heard of a node with what its Ready condition says.
    fn judge(&self, node: &str, status: &str, since: Duration, grace: Duration) -> Verdict {
        let beat = self.lock().get(node).cloned();
        let now = self.clock.monotonic();
        let heard = beat.as_ref().map_or(since, |b| b.heard.max(since));
        if now.saturating_sub(heard) > grace {
            return if status == "Unknown" { Verdict::Keep } else { Verdict::Unknown };
        }
        match (beat, status) {
            (Some(beat), "True") if !beat.ready => Verdict::NotReady(beat.reason),
            (Some(beat), "Unknown") if beat.ready => Verdict::Ready,
            (Some(beat), "Unknown") => Verdict::NotReady(beat.reason),
            _ => Verdict::Keep,
        }
    }
}

/// Writes transitions until this master no longer leads. The client is fenced.
pub async fn watch_nodes(
    liveness: Arc<Liveness>,
    client: Client,
    informers: Informers,
    grace: Duration,
    shutdown: CancellationToken,
) {
    liveness.reset();
    let mut seen: BTreeMap<String, Duration> = BTreeMap::new();
    let mut interval = tokio::time::interval(SCAN_INTERVAL);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = interval.tick() => {}
        }
        let nodes = informers.nodes.cache().list();
        liveness.forget_others(&nodes);
        seen.retain(|name, _| nodes.iter().any(|n| n.name_any() == *name));
        for node in &nodes {
            let name = node.name_any();
            let since = *seen.entry(name.clone()).or_insert_with(|| liveness.clock.monotonic());
            let verdict = liveness.judge(&name, &ready_status(node), since, grace);
            if verdict == Verdict::Keep {
                continue;
            }
            let write = write(&client, &name, &verdict, liveness.clock.now());
            match tokio::time::timeout(WRITE_TIMEOUT, write).await {
                Ok(Ok(())) => tracing::info!(node = name, ?verdict, "the Ready condition has changed"),
                Ok(Err(error)) => tracing::warn!(node = name, %error, "writing the Ready condition failed"),
                Err(_) => tracing::warn!(node = name, "writing the Ready condition took too long"),
            }
        }
    }
}

fn ready_status(node: &Node) -> String {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready: Option<&NodeCondition> = conditions.and_then(|c| c.iter().find(|c| c.type_ == "Ready"));
    ready.map_or_else(|| "Missing".into(), |c| c.status.clone())
}

/// The other conditions are the agent's too: when it is silent, nobody knows them.
const AGENT_CONDITIONS: [&str; 3] = ["MemoryPressure", "DiskPressure", "PIDPressure"];

async fn write(
    client: &Client,
    node: &str,
    verdict: &Verdict,
    now: std::time::SystemTime,
) -> Result<(), kube::Error> {
    let now = jiff::Timestamp::try_from(now).unwrap_or_default();
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": now,
        })
    };
    let conditions = match verdict {
        Verdict::Keep => return Ok(()),
        Verdict::Unknown => {
            let (reason, message) = ("NodeStatusUnknown", "Kubelet stopped posting node status.");
            let kinds = std::iter::once("Ready").chain(AGENT_CONDITIONS);
            kinds.map(|kind| condition(kind, "Unknown", reason, message)).collect()
        }
        Verdict::Ready => vec![
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
            condition(
                "MemoryPressure",
                "False",
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition(
                "PIDPressure",
                "False",
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
            ),
        ],
        Verdict::NotReady(reason) => vec![condition("Ready", "False", "KubeletNotReady", reason)],
    };
    let patch = Patch::Strategic(json!({ "status": { "conditions": conditions } }));
    let nodes = Api::<Node>::all(client.clone());
    nodes.patch_status(node, &PatchParams::default(), &patch).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    struct Fixed(Mutex<Duration>);

    impl Clock for Fixed {
        fn now(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }

        fn monotonic(&self) -> Duration {
            *self.0.lock().unwrap()
        }
    }

    fn at(seconds: u64) -> (Arc<Fixed>, Arc<Liveness>) {
        let clock = Arc::new(Fixed(Mutex::new(Duration::from_secs(seconds))));
        (clock.clone(), Liveness::new(clock))
    }

    const GRACE: Duration = Duration::from_secs(4);

    #[test]
    fn a_silent_node_becomes_unknown_after_the_grace_and_not_before() {
        let (clock, liveness) = at(100);
        liveness.beat("w1", true, "");
        *clock.0.lock().unwrap() = Duration::from_secs(104);
        assert_eq!(liveness.judge("w1", "True", Duration::from_secs(90), GRACE), Verdict::Keep);
        *clock.0.lock().unwrap() = Duration::from_secs(105);
        assert_eq!(liveness.judge("w1", "True", Duration::from_secs(90), GRACE), Verdict::Unknown);
        assert_eq!(liveness.judge("w1", "Unknown", Duration::from_secs(90), GRACE), Verdict::Keep);
    }

    #[test]
    fn a_new_leader_gives_every_node_a_full_window() {
        let (_, liveness) = at(100);
        assert_eq!(liveness.judge("w1", "True", Duration::from_secs(97), GRACE), Verdict::Keep);
        assert_eq!(liveness.judge("w1", "True", Duration::from_secs(90), GRACE), Verdict::Unknown);
    }

    #[test]
    fn a_node_that_beats_again_is_ready_again() {
        let (_, liveness) = at(100);
        liveness.beat("w1", true, "");
        assert_eq!(liveness.judge("w1", "Unknown", Duration::ZERO, GRACE), Verdict::Ready);
        liveness.beat("w1", false, "the runtime is down");
        let verdict = Verdict::NotReady("the runtime is down".into());
        assert_eq!(liveness.judge("w1", "True", Duration::ZERO, GRACE), verdict);
    }
}
