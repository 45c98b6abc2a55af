//! The scheduler of a leading master. `master/node` starts [`run`] when leadership begins, with a client
//! whose writes are fenced to that term, and cancels it when leadership ends. It sees the Kubernetes API
//! alone.
//!
//! ```text
//! informers -> handlers -> queue.rs ---pod---> cycle.rs (plugins/) ---node---> bind.rs -> API
//!                  \-----> snapshot.rs <--------reads-/   \--assume--> snapshot.rs
//! ```
//!
//! One pod is decided on at a time; bindings are written concurrently, each pod being assumed on its node
//! meanwhile.

mod bind;
mod cycle;
mod plugins;
mod queue;
mod resources;
mod snapshot;
#[cfg(test)]
mod testing;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::Client;
use master_client::{Delta, HandlerGuard, Informers, ObjectKey, Recorder};
use proto_env::{Clock, supervise};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use cycle::NoSuitableNode;
use plugins::Cycle;
use queue::{Attempt, Queue};
use snapshot::{PodInfo, Snapshot};

/// Value of `schedulerName` in pods that this scheduler handles.
const NAME: &str = "default-scheduler";
/// Maximum number of bindings and reports that are written concurrently.
const CONCURRENT_WRITES: usize = 128;
/// Deadline of a write.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// Configuration of the scheduler.
#[derive(Clone)]
pub struct Config {
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
}

/// Schedules pods until `shutdown`. Before, the caches catch up with everything that earlier leaders wrote.
pub async fn run(client: Client, informers: Informers, config: Config, shutdown: CancellationToken) {
    if !informers.caught_up(&client, &shutdown).await {
        return;
    }
    let recorder = Recorder::start(client.clone(), NAME, config.clock.clone(), shutdown.clone());
    let scheduler = Arc::new(Scheduler {
        client,
        informers,
        config,
        recorder,
        snapshot: Mutex::default(),
        queue: Queue::default(),
        writes: Arc::new(Semaphore::new(CONCURRENT_WRITES)),
        shutdown: shutdown.clone(),
    });
    let guards = scheduler.register();
    let mut turn = 0_usize;
    loop {
        let attempt = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            attempt = scheduler.queue.next() => attempt,
        };
        turn = turn.wrapping_add(1);
        let pod = attempt.pod.clone();
        // A pod that makes a plugin panic waits for its next attempt; other pods are not affected.
        if supervise::catch("scheduler", scheduler.attempt(attempt, turn)).await.is_err() {
            scheduler.give_back(&pod);
        }
        // A decision looks at all nodes without a pause, so other tasks get to run between two decisions.
        tokio::task::yield_now().await;
    }
    drop(guards);
}

struct Scheduler {
    client: Client,
    informers: Informers,
    config: Config,
    recorder: Recorder,
    snapshot: Mutex<Snapshot>,
    queue: Queue,
    writes: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Scheduler {
    fn snapshot(&self) -> MutexGuard<'_, Snapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(self: &Arc<Self>) -> Vec<HandlerGuard> {
        let namespaces = {
            let this = self.clone();
            self.informers.namespaces.add_handler(move |delta| this.on_namespace(delta))
        };
        let nodes = {
            let this = self.clone();
            self.informers.nodes.add_handler(move |delta| this.on_node(delta))
        };
        let pods = {
            let this = self.clone();
            self.informers.pods.add_handler(move |delta| this.on_pod(delta))
        };
        vec![namespaces, nodes, pods]
    }

    fn on_namespace(&self, delta: &Delta<'_, Namespace>) {
        let labels = |namespace: &Arc<Namespace>| namespace.metadata.labels.clone().unwrap_or_default();
        match (delta.old, delta.new) {
            (_, Some(namespace)) => self.snapshot().set_namespace(namespace),
            (Some(old), None) => {
                self.snapshot().remove_namespace(old.metadata.name.as_deref().unwrap_or_default());
            }
            (None, None) => {}
        }
        if delta.old.map(labels).unwrap_or_default() != delta.new.map(labels).unwrap_or_default() {
            // Affinity terms select namespaces by labels, so changed labels may help waiting pods.
            self.queue.cluster_changed();
        }
    }

    fn on_node(&self, delta: &Delta<'_, Node>) {
        match (delta.old, delta.new) {
            (old, Some(new)) => {
                self.snapshot().set_node(new.clone());
                if old.is_none_or(|old| could_help(old, new)) {
                    self.queue.cluster_changed();
                }
            }
            (Some(old), None) => {
                self.snapshot().remove_node(old.metadata.name.as_deref().unwrap_or_default());
                // A topology domain, or a pod that kept others away by anti-affinity, may be gone with the
                // node.
                self.queue.cluster_changed();
            }
            (None, None) => {}
        }
    }

    fn on_pod(&self, delta: &Delta<'_, Pod>) {
        let Some(pod) = delta.object() else { return };
        let key = ObjectKey::of(&**pod);
        let gone = delta.new.is_none() || is_terminal(pod);
        if gone {
            self.queue.remove(&key);
            let was_placed = {
                let mut snapshot = self.snapshot();
                let was_placed = snapshot.is_placed(&key);
                snapshot.remove(&key);
                was_placed
            };
            if was_placed {
                self.queue.cluster_changed();
            }
            return;
        }
        if let Some(node) = node_name(pod) {
            self.queue.remove(&key);
            let relevant = delta.old.is_none_or(|old| {
                node_name(old).is_none() || old.metadata.labels != pod.metadata.labels || old.spec != pod.spec
            });
            self.snapshot().place(Arc::new(PodInfo::new(pod.clone())), node);
            if relevant {
                // Another pod's affinity may have waited for this pod.
                self.queue.cluster_changed();
            }
            return;
        }
        // A new pod has the name of a former one, so the node assumed for the former pod is given up.
        if delta.old.is_some_and(|old| old.metadata.uid != pod.metadata.uid) {
            self.snapshot().remove(&key);
        }
        if is_ours(pod) && pod.metadata.deletion_timestamp.is_none() && !is_gated(pod) {
            if !self.snapshot().is_placed(&key) {
                self.queue.put(Arc::new(PodInfo::new(pod.clone())));
            }
        } else {
            self.queue.remove(&key);
        }
    }

    /// Decides on one pod and starts the write of the result.
    async fn attempt(self: &Arc<Self>, attempt: Attempt, turn: usize) {
        let decision = {
            let mut snapshot = self.snapshot();
            let cycle = Cycle { pod: &attempt.pod, snapshot: &snapshot, informers: &self.informers };
            let decision = cycle::schedule(&cycle, turn);
            if let Ok(node) = &decision {
                snapshot.assume(attempt.pod.clone(), node);
            }
            decision
        };
        let permit = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => return,
            permit = self.writes.clone().acquire_owned() => permit,
        };
        let (this, pod) = (self.clone(), attempt.pod.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let work = async {
                match decision {
                    Ok(node) => this.bind(&attempt, &node).await,
                    Err(unfit) => this.report(&attempt, &unfit).await,
                }
            };
            tokio::select! {
                biased;
                () = this.shutdown.cancelled() => {}
                written = supervise::catch("scheduler-write", work) => if written.is_err() {
                    this.give_back(&pod);
                }
            }
        });
    }

    async fn bind(&self, attempt: &Attempt, node: &str) {
        let pod = &attempt.pod;
        let bound = tokio::time::timeout(WRITE_DEADLINE, bind::bind(&self.client, pod, node)).await;
        let error = match bound {
            Ok(Ok(())) => {
                tracing::debug!(pod = %pod.key, node, "bound");
                bind::record_bound(&self.recorder, pod, node);
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer within the deadline".to_owned(),
        };
        tracing::info!(pod = %pod.key, node, error, "binding failed; trying again");
        self.give_back(pod);
    }

    /// Frees the resources assumed for a pod that was not bound, and puts the pod back in the queue.
    fn give_back(&self, pod: &PodInfo) {
        self.snapshot().forget(pod);
        self.queue.failed(pod);
        self.queue.cluster_changed();
    }

    async fn report(&self, attempt: &Attempt, unfit: &NoSuitableNode) {
        let message = unfit.message();
        tracing::debug!(pod = %attempt.pod.key, message, "no node");
        self.queue.unschedulable(attempt);
        let now = Timestamp::try_from(self.config.clock.now()).unwrap_or_default();
        let report =
            bind::report_failure(&self.client, &self.recorder, &attempt.pod, "Unschedulable", &message, now);
        match tokio::time::timeout(WRITE_DEADLINE, report).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(pod = %attempt.pod.key, %error, "condition not written"),
            Err(_) => tracing::debug!(pod = %attempt.pod.key, "condition not written within its deadline"),
        }
    }
}

/// Whether a change of a node could make room for an unschedulable pod; a heartbeat cannot.
fn could_help(old: &Node, new: &Node) -> bool {
    let allocatable = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
    old.metadata.labels != new.metadata.labels || old.spec != new.spec || allocatable(old) != allocatable(new)
}

fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_ours(pod: &Pod) -> bool {
    let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
    matches!(name, None | Some("" | NAME))
}

fn is_gated(pod: &Pod) -> bool {
    let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref());
    gates.is_some_and(|gates| !gates.is_empty())
}
