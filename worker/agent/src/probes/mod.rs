//! Probes of running containers: one task for each probe of a container, results by container id. A changed
//! result wakes the pod's worker, which restarts containers and writes readiness.

mod exec;
mod http;
mod tcp;
pub mod verdict;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Container, Pod};
use proto_env::supervise::supervise;
use tokio_util::sync::CancellationToken;

use crate::cri::Cri;
use crate::events::Events;

pub use http::{HttpRequest, get as http_get};
pub use worker::resolve_port;

/// Probe results of one container; `None` means no result yet, or no such probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerHealth {
    /// Whether the startupProbe has passed.
    pub startup: Option<bool>,
    /// Whether the readinessProbe passes.
    pub readiness: Option<bool>,
    /// Whether the livenessProbe passes.
    pub liveness: Option<bool>,
}

/// The kinds of probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// The container's `startupProbe`.
    Startup,
    /// The container's `readinessProbe`.
    Readiness,
    /// The container's `livenessProbe`.
    Liveness,
}

impl ProbeKind {
    /// Returns the name used in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// A running container to be probed.
#[derive(Clone, Debug)]
pub struct ProbeTarget {
    /// The container's pod.
    pub pod: Arc<Pod>,
    /// The container's specification.
    pub container: Container,
    /// Id of the container in the runtime.
    pub id: String,
    /// Time at which the container started, in nanoseconds since the Unix epoch.
    pub started_at: i64,
    /// Address to connect to if the probe names no host.
    pub ip: String,
    /// Results assumed before the first probe: those the API server shows for exactly this container, so that
    /// a restart of the agent makes no container unready and repeats no startup probe.
    pub known: ContainerHealth,
}

/// Callback that is given a pod's UID when a result has changed.
pub type Wake = Arc<dyn Fn(&str) + Send + Sync>;

struct Running {
    pod_uid: String,
    stop: CancellationToken,
    /// Stops the liveness and startup probes only: a pod that is ending keeps its readiness probe.
    stop_killers: CancellationToken,
    health: ContainerHealth,
    started: tokio::sync::watch::Sender<bool>,
}

/// All probes of the node's containers; clones share them.
#[derive(Clone)]
pub struct Probes {
    cri: Cri,
    events: Events,
    wake: Wake,
    containers: Arc<Mutex<BTreeMap<String, Running>>>,
}

impl Probes {
    /// Creates an empty set; probes run commands through `cri`, write to `events` and call `wake`.
    pub fn new(cri: Cri, events: Events, wake: Wake) -> Self {
        Self { cri, events, wake, containers: Arc::default() }
    }

    /// Makes the probed containers of a pod exactly `targets`: starts probes of new containers, stops those
    /// of others.
    pub fn reconcile(&self, pod_uid: &str, targets: Vec<ProbeTarget>) {
        let ids: BTreeSet<&str> = targets.iter().map(|t| t.id.as_str()).collect();
        let mut containers = self.lock();
        containers.retain(|id, running| {
            let keep = running.pod_uid != pod_uid || ids.contains(id.as_str());
            if !keep {
                running.stop.cancel();
            }
            keep
        });
        for target in targets {
            if containers.contains_key(&target.id) {
                continue;
            }
            let started = target.container.startup_probe.is_none() || target.known.startup == Some(true);
            let stop = CancellationToken::new();
            let running = Running {
                pod_uid: pod_uid.to_owned(),
                stop_killers: stop.child_token(),
                stop,
                health: target.known,
                started: tokio::sync::watch::Sender::new(started),
            };
            self.spawn_all(&target, &running);
            containers.insert(target.id, running);
        }
    }

    fn spawn_all(&self, target: &ProbeTarget, running: &Running) {
        let probes = [
            (ProbeKind::Startup, &target.container.startup_probe),
            (ProbeKind::Readiness, &target.container.readiness_probe),
            (ProbeKind::Liveness, &target.container.liveness_probe),
        ];
        for (kind, probe) in probes {
            let Some(probe) = probe.clone() else { continue };
            if kind == ProbeKind::Startup && target.known.startup == Some(true) {
                continue;
            }
            let stop = if kind == ProbeKind::Readiness { &running.stop } else { &running.stop_killers };
            let (probes, target, stop) = (self.clone(), target.clone(), stop.clone());
            let started = running.started.subscribe();
            tokio::spawn(supervise("agent-probe", move || {
                let worker = worker::Worker {
                    probes: probes.clone(),
                    target: target.clone(),
                    kind,
                    probe: probe.clone(),
                    started: started.clone(),
                    stop: stop.clone(),
                };
                worker.run()
            }));
        }
    }

    /// Stops the liveness and startup probes of a pod that is ending.
    pub fn stop_killers(&self, pod_uid: &str) {
        for running in self.lock().values().filter(|r| r.pod_uid == pod_uid) {
            running.stop_killers.cancel();
        }
    }

    /// Returns the probe results of a pod's containers, by container id.
    pub fn health(&self, pod_uid: &str) -> BTreeMap<String, ContainerHealth> {
        let containers = self.lock();
        let own = containers.iter().filter(|(_, r)| r.pod_uid == pod_uid);
        own.map(|(id, running)| (id.clone(), running.health)).collect()
    }

    /// Records a result and wakes the pod's worker if the result has changed.
    fn report(&self, target: &ProbeTarget, kind: ProbeKind, healthy: bool) {
        let uid = {
            let mut containers = self.lock();
            let Some(running) = containers.get_mut(&target.id) else { return };
            let slot = match kind {
                ProbeKind::Startup => &mut running.health.startup,
                ProbeKind::Readiness => &mut running.health.readiness,
                ProbeKind::Liveness => &mut running.health.liveness,
            };
            if *slot == Some(healthy) {
                return;
            }
            *slot = Some(healthy);
            if kind == ProbeKind::Startup && healthy {
                running.started.send_replace(true);
            }
            running.pod_uid.clone()
        };
        (self.wake)(&uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Running>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
