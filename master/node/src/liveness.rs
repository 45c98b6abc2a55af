//! Node liveness, in memory: workers send beats over a stream to the leader, and only transitions of the
//! Ready condition are written, through the API. The node-lifecycle controller reacts to those. `peer.rs`
//! feeds beats in, on every master: a worker whose stream to the leader fails beats to another master, and
//! the leader asks the others what they hear (`witnesses.rs`) before it calls a node silent. `leader.rs`
//! runs [`watch_nodes`] while this master leads. Nodes whose agents send no beats are judged by what they
//! write through the API, as in Kubernetes (`liveness/renewals.rs`).

mod conditions;
#[cfg(test)]
mod mass_loss_tests;
mod renewals;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use master_client::Informers;
use proto_env::Clock;
use proto_wire::cluster::{Certificate, NodeCertificates};
use tokio_util::sync::CancellationToken;

use self::renewals::Renewal;
use crate::witnesses::{HeardNode, Witnesses};

/// Interval between two scans for silent nodes.
const SCAN_INTERVAL: Duration = Duration::from_millis(250);
/// Shortest pause between two questions to the other masters while a node falls silent.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// Shortest pause between two questions to the other masters while every silent node is marked as such
/// already, to learn whether another master hears one of them again.
const ASK_AGAIN_INTERVAL: Duration = Duration::from_secs(5);
/// Deadline of one status write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of status writes at the same time.
const CONCURRENT_WRITES: usize = 32;
/// More silent nodes than this number, and at least this share of all nodes in percent, are a mass loss:
/// the leader then asks the other masters before it marks any node.
const MASS_LOSS_NODES: usize = 2;
const MASS_LOSS_PERCENT: usize = 55;
/// Number of remembered nodes from which on a master forgets those whose last beat is older than
/// `FORGET_AFTER`.
const NODES_MAX: usize = 16_384;
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// Maximum length in bytes of the reason a node gives for not being ready; longer ones are cut off.
const REASON_BYTES: usize = 1024;
/// Maximum number of certificates that a node may name, and maximum length in bytes of their names.
const CERTIFICATES_MAX: usize = 8;
const CERTIFICATE_NAME_BYTES: usize = 64;

/// The last beat of a node's agent: what it said, and when a master heard it.
#[derive(Debug, Clone)]
struct Beat {
    /// When the beat was heard, on the monotonic clock.
    heard: Duration,
    ready: bool,
    reason: String,
}

/// What this master knows of one node.
#[derive(Debug, Default)]
struct KnownNode {
    beat: Option<Beat>,
    /// What the agent of a node without beats renewed last.
    renewal: Option<Renewal>,
    /// Since when this leader has known the node, on the monotonic clock: its silence counts from then at the
    /// earliest.
    known_since: Option<Duration>,
    /// The node's certificates, as its last beat to this master named them.
    certificates: Vec<Certificate>,
    /// Number of the last scan that saw the Node object.
    scan: u64,
}

/// The last beats of all nodes, as this master heard them or was told by other masters.
pub struct Liveness {
    clock: Arc<dyn Clock>,
    records: Mutex<KnownNodes>,
}

#[derive(Debug, Default)]
struct KnownNodes {
    nodes: BTreeMap<String, KnownNode>,
    scans: u64,
    /// Silence is counted from this time at the earliest: the leader itself stood still until then.
    not_before: Duration,
}

/// The status that the Ready condition of a node should get.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// The node is silent.
    Unknown,
    /// The node is silent and has never written a Ready condition.
    NeverReported,
    Ready,
    NotReady(String),
}

/// Result of one scan of all nodes.
#[derive(Debug, Default)]
struct Scan {
    /// The nodes whose Ready condition has to change.
    verdicts: Vec<(String, Verdict)>,
    /// Shortest pause since the last question after which to ask the other masters again, because some
    /// nodes have been silent for half of the grace. `None` when all nodes are heard.
    ask_after: Option<Duration>,
    /// Number of nodes that have been silent for longer than the grace, whatever their Ready condition says.
    silent: usize,
    /// Number of all nodes.
    nodes: usize,
}

impl Scan {
    /// Whether so many nodes are silent that the fault is likelier at this master than at the nodes.
    fn is_mass_loss(&self) -> bool {
        let most = self.silent > MASS_LOSS_NODES && self.silent * 100 >= self.nodes * MASS_LOSS_PERCENT;
        most || (self.silent == self.nodes && self.nodes > 1)
    }
}

impl KnownNode {
    /// Returns when the node gave its last sign of life, or the earliest time from which its silence counts.
    fn heard(&self, not_before: Duration, now: Duration) -> Duration {
        let beat = self.beat.as_ref().map_or(Duration::ZERO, |beat| beat.heard);
        let renewal = self.renewal.as_ref().map_or(Duration::ZERO, |renewal| renewal.seen);
        beat.max(renewal).max(self.known_since.unwrap_or(now)).max(not_before)
    }

    /// Compares what was heard of the node with its Ready condition; `None` when the condition needs
    /// no change.
    fn judge(&self, status: &str, silent: bool) -> Option<Verdict> {
        if silent && status == "Missing" {
            return Some(Verdict::NeverReported);
        }
        if silent {
            return (status != "Unknown").then_some(Verdict::Unknown);
        }
        match (&self.beat, status) {
            (Some(beat), "True" | "Unknown") if !beat.ready => Some(Verdict::NotReady(beat.reason.clone())),
            (Some(_), "Unknown") => Some(Verdict::Ready),
            _ => None,
        }
    }
}

impl Liveness {
    /// Creates an empty record: no node has been heard yet.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, records: Mutex::default() })
    }

    /// Records a beat that `node` sent to this master.
    pub fn beat(&self, node: &str, ready: bool, reason: &str) {
        let now = self.clock.monotonic();
        self.lock().enter(node, now, ready, reason, now);
    }

    /// Records the certificates that a beat of `node` named.
    pub fn certificates(&self, node: &str, mut certificates: Vec<Certificate>) {
        certificates.retain(|certificate| certificate.name.len() <= CERTIFICATE_NAME_BYTES);
        certificates.truncate(CERTIFICATES_MAX);
        if let Some(known) = self.lock().nodes.get_mut(node)
            && known.certificates != certificates
        {
            known.certificates = certificates;
        }
    }

    /// Returns the certificates of the nodes that have beaten at this master lately.
    pub fn known_certificates(&self) -> Vec<NodeCertificates> {
        let now = self.clock.monotonic();
        let records = self.lock();
        let recent = |beat: &Beat| now.saturating_sub(beat.heard) < FORGET_AFTER;
        let known = records.nodes.iter().filter(|(_, known)| known.beat.as_ref().is_some_and(recent));
        let known = known.filter(|(_, known)| !known.certificates.is_empty());
        known
            .map(|(node, known)| NodeCertificates {
                node: node.clone(),
                certificates: known.certificates.clone(),
            })
            .collect()
    }

    /// Returns the nodes that have beaten at this master within `within`: the answer to the leader's
    /// question.
    pub fn heard_within(&self, within: Duration) -> Vec<HeardNode> {
        let now = self.clock.monotonic();
        let records = self.lock();
        let heard = records.nodes.iter().filter_map(|(node, record)| {
            let beat = record.beat.as_ref()?;
            let ago = now.saturating_sub(beat.heard);
            let (node, reason) = (node.clone(), beat.reason.clone());
            (ago <= within).then_some(HeardNode { node, ago, ready: beat.ready, reason })
        });
        heard.collect()
    }

    /// Records the other masters' answers to a question that was asked at `asked` on the monotonic clock.
    fn others_heard(&self, asked: Duration, heard: &[HeardNode]) {
        let mut records = self.lock();
        for other in heard {
            let time = asked.saturating_sub(other.ago);
            records.enter(&other.node, time, other.ready, &other.reason, asked);
        }
    }

    /// Forgets all beats when a leadership begins: every node gets one full grace from now.
    fn reset(&self) {
        *self.lock() = KnownNodes::default();
    }

    /// Starts every node's silence anew, because this leader stood still and may have missed beats.
    fn stood_still(&self) {
        let now = self.clock.monotonic();
        self.lock().not_before = now;
    }

    fn lock(&self) -> MutexGuard<'_, KnownNodes> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Scans all nodes once: linear in their number, and without an allocation for a node that beats and
    /// needs no change. `lease` gives the Lease of a node, `grace` is that of nodes that send beats.
    fn scan<'a>(
        &self,
        nodes: impl Iterator<Item = &'a Node>,
        lease: impl Fn(&str) -> Option<Arc<Lease>>,
        grace: Duration,
    ) -> Scan {
        let now = self.clock.monotonic();
        let mut records = self.lock();
        records.scans += 1;
        let (this, not_before) = (records.scans, records.not_before);
        let mut scan = Scan::default();
        for node in nodes {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let record = match records.nodes.get_mut(name) {
                Some(record) => record,
                None => records.nodes.entry(name.to_owned()).or_default(),
            };
            record.scan = this;
            record.known_since.get_or_insert(now);
            let status = conditions::ready_status(node);
            let beats = record.beat.is_some() || renewals::sends_beats(node);
            let grace = if beats { grace } else { renewals::grace(status) };
            if !beats {
                Renewal::note(&mut record.renewal, node, lease(name).as_deref(), now);
            }
            let silence = now.saturating_sub(record.heard(not_before, now));
            let silent = silence > grace;
            scan.nodes += 1;
            scan.silent += usize::from(silent);
            if beats && silence > grace / 2 {
                let pause = if status == "Unknown" { ASK_AGAIN_INTERVAL } else { ASK_INTERVAL };
                scan.ask_after = Some(scan.ask_after.map_or(pause, |sooner| sooner.min(pause)));
            }
            if let Some(verdict) = record.judge(status, silent) {
                scan.verdicts.push((name.to_owned(), verdict));
            }
        }
        records.nodes.retain(|_, record| record.scan == this);
        scan
    }
}

impl KnownNodes {
    /// Records a sign of life at `heard`, unless a later one is known.
    fn enter(&mut self, node: &str, heard: Duration, ready: bool, reason: &str, now: Duration) {
        let reason = &reason[..reason.floor_char_boundary(REASON_BYTES)];
        if let Some(record) = self.nodes.get_mut(node) {
            match &mut record.beat {
                Some(beat) if beat.heard > heard => {}
                Some(beat) => {
                    beat.heard = heard;
                    beat.ready = ready;
                    if beat.reason != reason {
                        reason.clone_into(&mut beat.reason);
                    }
                }
                None => record.beat = Some(Beat { heard, ready, reason: reason.to_owned() }),
            }
            return;
        }
        if self.nodes.len() >= NODES_MAX {
            let recent = |beat: &Beat| now.saturating_sub(beat.heard) < FORGET_AFTER;
            self.nodes.retain(|_, record| record.beat.as_ref().is_some_and(recent));
        }
        let beat = Some(Beat { heard, ready, reason: reason.to_owned() });
        self.nodes.insert(node.to_owned(), KnownNode { beat, ..KnownNode::default() });
    }
}

/// What a leader needs to watch the nodes.
pub struct NodeWatch {
    /// The beats of all nodes.
    pub liveness: Arc<Liveness>,
    /// Writes conditions; the writes are fenced to the term.
    pub client: Client,
    /// The caches that hold the Node objects.
    pub informers: Informers,
    /// Asks the other masters which nodes they hear.
    pub witnesses: Arc<dyn Witnesses>,
    /// How long a node may be silent.
    pub grace: Duration,
}

/// A question to the other masters that is under way: gives the time it was asked at, and the answers.
type Question = BoxFuture<'static, (Duration, Vec<HeardNode>)>;

/// Writes transitions of Ready conditions until this master no longer leads.
pub async fn watch_nodes(watch: &NodeWatch, shutdown: CancellationToken) {
    let NodeWatch { liveness, grace, .. } = watch;
    liveness.reset();
    let mut interval = tokio::time::interval(SCAN_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut question: Option<Question> = None;
    let mut asked: Option<Duration> = None;
    // When the present mass loss began, and whether the other masters have answered a question asked
    // since then.
    let (mut loss_since, mut confirmed): (Option<Duration>, bool) = (None, false);
    let mut last_scan = liveness.clock.monotonic();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            (at, heard) = answer(&mut question) => {
                question = None;
                liveness.others_heard(at, &heard);
                confirmed |= loss_since.is_some_and(|since| at >= since);
                continue;
            }
            _ = interval.tick() => {}
        }
        let now = liveness.clock.monotonic();
        if now.saturating_sub(last_scan) > *grace / 2 {
            tracing::warn!(stood_still = ?now - last_scan, "this master was paused; the silence of every node counts from now on");
            liveness.stood_still();
        }
        let mut scan = {
            let nodes = watch.informers.nodes.cache().list();
            let leases = watch.informers.node_leases.cache();
            let lease = |node: &str| leases.find(Informers::NODE_LEASES, node);
            liveness.scan(nodes.iter().map(|node| &**node), lease, *grace)
        };
        let due = |pause| asked.is_none_or(|at| now.saturating_sub(at) >= pause);
        if question.is_none() && scan.ask_after.is_some_and(due) {
            asked = Some(now);
            let (witnesses, within) = (watch.witnesses.clone(), *grace);
            question = Some(async move { (now, witnesses.heard_within(within).await) }.boxed());
        }
        if scan.is_mass_loss() {
            if loss_since.is_none() {
                let (silent, nodes) = (scan.silent, scan.nodes);
                tracing::warn!(silent, nodes, "most nodes are silent; asking the other masters first");
                // A question that is under way was asked before the loss began, so only the next one
                // confirms it.
                loss_since = Some(now);
                confirmed = false;
            }
        } else {
            loss_since = None;
        }
        if loss_since.is_some() && !confirmed {
            scan.verdicts
                .retain(|(_, verdict)| !matches!(verdict, Verdict::Unknown | Verdict::NeverReported));
        }
        write_all(watch, scan.verdicts).await;
        last_scan = liveness.clock.monotonic();
    }
}

/// Waits for the answer to the question that is under way; for ever when there is none.
async fn answer(question: &mut Option<Question>) -> (Duration, Vec<HeardNode>) {
    match question {
        Some(question) => question.await,
        None => std::future::pending().await,
    }
}

async fn write_all(watch: &NodeWatch, verdicts: Vec<(String, Verdict)>) {
    let writes = futures::stream::iter(verdicts).map(|(node, verdict)| async move {
        let write = conditions::write(&watch.client, &node, &verdict, watch.liveness.clock.now());
        match tokio::time::timeout(WRITE_TIMEOUT, write).await {
            Ok(Ok(())) => tracing::info!(node, ?verdict, "the Ready condition has changed"),
            Ok(Err(error)) => tracing::warn!(node, %error, "writing the Ready condition failed"),
            Err(_) => tracing::warn!(node, "writing the Ready condition took too long"),
        }
    });
    writes.buffer_unordered(CONCURRENT_WRITES).collect::<Vec<()>>().await;
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proto_api::node_labels::SENDS_BEATS;
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;

    pub struct Fixed(Mutex<Duration>);

    impl Clock for Fixed {
        fn now(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }

        fn monotonic(&self) -> Duration {
            *self.0.lock().unwrap()
        }
    }

    impl Fixed {
        pub fn set(&self, seconds: u64) {
            *self.0.lock().unwrap() = Duration::from_secs(seconds);
        }
    }

    pub fn at(seconds: u64) -> (Arc<Fixed>, Arc<Liveness>) {
        let clock = Arc::new(Fixed(Mutex::new(Duration::from_secs(seconds))));
        (clock.clone(), Liveness::new(clock))
    }

    const GRACE: Duration = Duration::from_secs(4);

    #[test]
    fn certificates_are_those_of_the_last_beat_and_of_nodes_heard_lately() {
        let (clock, liveness) = at(0);
        let certificates = |not_after| vec![Certificate { name: "client".to_owned(), not_after }];
        liveness.certificates("w1", certificates(1));
        assert_eq!(liveness.known_certificates(), [], "a node that never beat");
        for not_after in [10, 20] {
            liveness.beat("w1", true, "");
            liveness.certificates("w1", certificates(not_after));
            let known = NodeCertificates { node: "w1".to_owned(), certificates: certificates(not_after) };
            assert_eq!(liveness.known_certificates(), [known]);
        }
        // What a node may make a master remember is bounded.
        let long = Certificate { name: "x".repeat(1000), not_after: 1 };
        liveness.certificates("w1", vec![long; 1000]);
        assert_eq!(liveness.known_certificates(), []);
        liveness.certificates("w1", vec![certificates(1).remove(0); 1000]);
        assert_eq!(liveness.known_certificates()[0].certificates.len(), CERTIFICATES_MAX);
        clock.set(60);
        assert_eq!(liveness.known_certificates(), []);
    }

    fn node(name: &str, ready: &str) -> Node {
        let node = json!({"metadata": {"name": name, "annotations": {SENDS_BEATS: "true"}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        serde_json::from_value(node).unwrap()
    }

    /// Returns the verdict about a single node whose Ready condition has this status.
    fn judge(liveness: &Liveness, status: &str) -> Option<Verdict> {
        let mut scan = liveness.scan([node("w1", status)].iter(), |_| None, GRACE);
        scan.verdicts.pop().map(|(_, verdict)| verdict)
    }

    #[test]
    fn a_silent_node_becomes_unknown_after_the_grace_and_not_before() {
        let (clock, liveness) = at(90);
        assert_eq!(judge(&liveness, "True"), None);
        clock.set(100);
        liveness.beat("w1", true, "");
        clock.set(104);
        assert_eq!(judge(&liveness, "True"), None);
        clock.set(105);
        assert_eq!(judge(&liveness, "True"), Some(Verdict::Unknown));
        assert_eq!(judge(&liveness, "Unknown"), None);
    }

    #[test]
    fn a_new_leader_gives_every_node_a_full_window() {
        let (clock, liveness) = at(97);
        assert_eq!(judge(&liveness, "True"), None);
        clock.set(101);
        assert_eq!(judge(&liveness, "True"), None);
        clock.set(102);
        assert_eq!(judge(&liveness, "True"), Some(Verdict::Unknown));
    }

    #[test]
    fn a_leader_that_stood_still_gives_every_node_a_full_window() {
        let (clock, liveness) = at(90);
        liveness.beat("w1", true, "");
        assert_eq!(judge(&liveness, "True"), None);
        clock.set(100);
        liveness.stood_still();
        assert_eq!(judge(&liveness, "True"), None);
        clock.set(105);
        assert_eq!(judge(&liveness, "True"), Some(Verdict::Unknown));
    }

    #[test]
    fn a_node_that_beats_again_is_ready_again() {
        let (_, liveness) = at(100);
        liveness.beat("w1", true, "");
        assert_eq!(judge(&liveness, "Unknown"), Some(Verdict::Ready));
        liveness.beat("w1", false, "the runtime is down");
        let not_ready = Verdict::NotReady("the runtime is down".into());
        assert_eq!(judge(&liveness, "True"), Some(not_ready));
    }

    #[test]
    fn a_node_that_another_master_hears_is_not_silent() {
        let (clock, liveness) = at(90);
        assert_eq!(judge(&liveness, "True"), None);
        clock.set(100);
        let (node, ago) = ("w1".to_owned(), Duration::from_secs(3));
        liveness.others_heard(
            Duration::from_secs(100),
            &[HeardNode { node, ago, ready: true, reason: String::new() }],
        );
        assert_eq!(judge(&liveness, "True"), None);
        clock.set(102);
        assert_eq!(judge(&liveness, "True"), Some(Verdict::Unknown), "that was at 97");
    }

    #[test]
    fn nodes_whose_objects_are_gone_are_forgotten() {
        let (_, liveness) = at(100);
        liveness.beat("w1", true, "");
        liveness.beat("gone", true, "");
        liveness.scan([node("w1", "True")].iter(), |_| None, GRACE);
        assert_eq!(liveness.heard_within(GRACE).len(), 1);
    }

    /// Prints how long one scan of 5,000 nodes takes:
    /// `cargo test -p master-node --release -- --nocapture one_look`.
    #[test]
    fn one_look_at_many_nodes_is_linear() {
        let (_, liveness) = at(100);
        let nodes: Vec<Node> = (0..5000).map(|number| node(&format!("node-{number}"), "True")).collect();
        for node in &nodes {
            liveness.beat(node.metadata.name.as_deref().unwrap(), true, "");
        }
        let started = Instant::now();
        for _ in 0..10 {
            assert_eq!(liveness.scan(nodes.iter(), |_| None, GRACE).nodes, 5000);
        }
        println!("one look at 5,000 nodes: {:?}", started.elapsed() / 10);
        // A scan that is quadratic in the nodes compares names 25 million times: minutes in a debug build.
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}
