//! A leader that hears nothing from 99 % of 1,000 workers any more, with the real controllers over an API in memory
//! and on paused time: while another master hears the workers nobody is evicted, and when nobody does, at the slow
//! rate.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use master_client::fake::FakeApi;
use proto_api::node_labels::SENDS_BEATS;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use super::*;

const WORKERS: usize = 1000;
/// Number of workers whose beats stop.
const LOST: usize = 990;
const GRACE: Duration = Duration::from_secs(4);

/// A clock that follows tokio's paused time.
struct Paused(Instant);

impl Clock for Paused {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.0.elapsed()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(1000) + self.0.elapsed()
    }
}

/// Another master, which hears all workers or none.
struct Other {
    hears: bool,
    answers_after: Duration,
}

/// What a question takes that is answered, and the timeout of one that is not.
const SOON: Duration = Duration::from_millis(5);
const TIMEOUT: Duration = Duration::from_secs(1);

#[async_trait]
impl Witnesses for Other {
    async fn heard_within(&self, _: Duration) -> Vec<HeardNode> {
        tokio::time::sleep(self.answers_after).await;
        let (ago, ready, reason) = (Duration::from_secs(1), true, String::new());
        let heard = (0..LOST).filter(|_| self.hears);
        heard.map(|number| HeardNode { node: name(number), ago, ready, reason: reason.clone() }).collect()
    }
}

fn name(number: usize) -> String {
    format!("w{number:04}")
}

struct World {
    api: Arc<FakeApi>,
    /// Whether the leader still hears the workers that are to be lost.
    all_heard: Arc<AtomicBool>,
    _running: DropGuard,
}

impl World {
    fn start(other: Other) -> Self {
        let (api, shutdown) = (FakeApi::new(), CancellationToken::new());
        for number in 0..WORKERS {
            api.add(
                "nodes",
                json!({"metadata": {"name": name(number), "annotations": {SENDS_BEATS: "true"}}, "spec": {"podCIDR": "10.42.0.0/24"},
                    "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
            );
            let tolerations = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists",
                "effect": "NoExecute", "tolerationSeconds": 5}]);
            api.add(
                "pods",
                json!({"metadata": {"name": format!("pod-{number}"), "namespace": "default"},
                    "spec": {"nodeName": name(number), "tolerations": tolerations, "containers": []},
                    "status": {"phase": "Running"}}),
            );
        }
        let clock: Arc<dyn Clock> = Arc::new(Paused(Instant::now()));
        let informers = Informers::start(api.client(), Arc::new(|| {}), &shutdown);
        let liveness = Liveness::new(clock.clone());
        let watch = NodeWatch {
            liveness: liveness.clone(),
            client: api.client(),
            informers: informers.clone(),
            witnesses: Arc::new(other),
            grace: GRACE,
        };
        let masters = tokio::sync::watch::channel(Vec::new()).1;
        let config = master_controllers::Config {
            cluster_ca: "ca".to_owned(),
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            node_cidr_prefix: 24,
            api_service_ip: [10, 96, 0, 1].into(),
            dns_service_ip: [10, 96, 0, 10].into(),
            masters,
            clock,
        };
        let all_heard = Arc::new(AtomicBool::new(true));
        let (heard, stop) = (all_heard.clone(), shutdown.clone());
        tokio::spawn(master_controllers::run(api.client(), informers, config, shutdown.clone()));
        tokio::spawn(async move { watch_nodes(&watch, stop).await });
        tokio::spawn(async move {
            loop {
                let first = if heard.load(Ordering::Relaxed) { 0 } else { LOST };
                (first..WORKERS).for_each(|number| liveness.beat(&name(number), true, ""));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        Self { api, all_heard, _running: shutdown.drop_guard() }
    }

    /// Lets the workers fall silent at this leader, and this much time pass.
    async fn lose(&self, seconds: u64) {
        self.all_heard.store(false, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    fn unknown(&self) -> usize {
        let unknown = |node: &Value| {
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions
                .iter()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "Unknown")
        };
        self.api.objects("nodes").iter().filter(|node| unknown(node)).count()
    }

    fn no_execute(&self) -> usize {
        let evicting = |node: &Value| {
            let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
            taints.iter().any(|taint| taint["effect"] == "NoExecute")
        };
        self.api.objects("nodes").iter().filter(|node| evicting(node)).count()
    }

    /// Counts pods that were deleted or marked for deletion.
    fn evicted(&self) -> usize {
        let pods = self.api.objects("pods");
        WORKERS - pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).count()
    }
}

#[tokio::test(start_paused = true)]
async fn while_another_master_hears_the_workers_nobody_is_evicted() {
    let world = World::start(Other { hears: true, answers_after: SOON });
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.lose(120).await;
    assert_eq!((world.unknown(), world.no_execute(), world.evicted()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn no_verdict_precedes_the_answer_of_another_master_that_is_slow() {
    // Asked at half of the grace, it answers when the whole grace is over.
    let world = World::start(Other { hears: true, answers_after: Duration::from_secs(3) });
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.lose(12).await;
    assert_eq!((world.unknown(), world.no_execute(), world.evicted()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn when_nobody_hears_the_workers_they_are_evicted_at_the_slow_rate() {
    let world = World::start(Other { hears: false, answers_after: TIMEOUT });
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.lose(60).await;
    assert_eq!(world.unknown(), LOST);
    let (first, gone) = (world.no_execute(), world.evicted());
    // At most two before the loss is seen as a whole, and one of the slow rate.
    assert!((1..=3).contains(&first), "{first}");
    assert_eq!(gone, first);
    tokio::time::sleep(Duration::from_secs(500)).await;
    let after = world.no_execute() - first;
    assert!((4..=6).contains(&after), "{after} in 500 s, one in 100 s is the rate");
    assert_eq!(world.evicted(), world.no_execute());
}
