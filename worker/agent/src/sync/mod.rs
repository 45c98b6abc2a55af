//! Brings a pod's containers in line with its specification: observe, decide ([`actions`]), act, observe
//! again. Called by `pod_worker`.

pub mod actions;
mod container;
pub mod kill;
mod mounts;
pub mod sandbox;
mod start;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::api::node::v1::RuntimeClass;
use tokio::time::Instant;
use tracing::{debug, warn};
use worker_volumes::MountedVolume;

use crate::backoff::Backoff;
use crate::context::Context;
use crate::cri::snapshot::{RuntimePod, is_exited, is_running};
use crate::probes::ProbeTarget;
use crate::status::{self, Waiting};
use crate::sync::volumes::PodVolumes;
use crate::{Error, cgroups, clock, pod, protection, resources};

/// Maximum number of observe-and-act rounds in one sync. A pod needs one round for each init container; if
/// more are needed, the next sync continues.
const MAX_ROUNDS: usize = 16;
const RETRY: Duration = Duration::from_secs(10);
const MOUNT_RETRY: Duration = Duration::from_secs(2);

/// State that a pod worker keeps between syncs. It may be lost: it is rebuilt from the runtime and the API.
#[derive(Debug)]
pub struct PodState {
    /// Reason and message of each container whose start failed, by container name.
    pub waiting: BTreeMap<String, Waiting>,
    /// Termination messages of exited containers, by container id.
    pub messages: BTreeMap<String, String>,
    /// Time at which each container ended, by container id. Converted from the runtime's wall clock once, so
    /// that a change of the system clock cannot stretch a back-off.
    pub ended: BTreeMap<String, Instant>,
    /// Back-off between restarts of containers.
    pub restarts: Backoff,
    /// Back-off between image pulls.
    pub pulls: Backoff,
    /// Reason and message with which the pod is forced to phase Failed; `None` if it is not.
    pub failed: Option<(String, String)>,
    /// The pod's volumes.
    pub volumes: PodVolumes,
}

impl Default for PodState {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            messages: BTreeMap::new(),
            ended: BTreeMap::new(),
            restarts: Backoff::kubelet(),
            pulls: Backoff::kubelet(),
            failed: None,
            volumes: PodVolumes::default(),
        }
    }
}

/// Result of a sync.
#[derive(Debug, PartialEq, Eq)]
pub enum SyncOutcome {
    /// Nothing more to do now; the next sync is due at the given time, or at the next event if `None`.
    Settled(Option<Instant>),
    /// The pod has reached a final phase: everything of it that still runs must be stopped.
    Over,
}

/// Brings the pod to its desired state, as far as possible without waiting.
pub async fn sync(
    context: &Arc<Context>,
    state: &mut PodState,
    pod: &Arc<Pod>,
) -> Result<SyncOutcome, Error> {
    let mut wake_at = None;
    for _ in 0..MAX_ROUNDS {
        let runtime = observe(context, state, pod).await?;
        let deadline = active_deadline(context, state, pod);
        let status = publish(context, state, pod, &runtime, false);
        if pod::is_terminal_phase(status.phase.as_deref()) {
            return Ok(SyncOutcome::Over);
        }
        wake_at = earliest(wake_at, deadline);
        let health = context.probes.health(pod::uid(pod));
        let actions = actions::compute(pod, &runtime, &health);
        let volumes = match state.volumes.usable(context, pod, pod_ips(context, pod, &runtime)).await {
            Ok(volumes) => volumes,
            Err(error) => {
                debug!(pod = %pod::display(pod), %error, "no volumes yet");
                return Ok(SyncOutcome::Settled(earliest(wake_at, Some(Instant::now() + MOUNT_RETRY))));
            }
        };
        wake_at = earliest(wake_at, context.objects.next_renewal(pod::uid(pod)));
        if actions == actions::Actions::default() {
            return Ok(SyncOutcome::Settled(wake_at));
        }
        debug!(pod = %pod::display(pod), ?actions, "acting");
        let round = Round { context, pod, runtime: &runtime, volumes: &volumes };
        let (progress, retry_at) = round.act(state, actions).await?;
        wake_at = earliest(wake_at, retry_at);
        if !progress {
            let runtime = observe(context, state, pod).await?;
            let status = publish(context, state, pod, &runtime, false);
            if pod::is_terminal_phase(status.phase.as_deref()) {
                return Ok(SyncOutcome::Over);
            }
            return Ok(SyncOutcome::Settled(wake_at));
        }
    }
    Ok(SyncOutcome::Settled(Some(Instant::now())))
}

/// Reads the pod's state from the runtime and the termination messages of its exited containers, and gives
/// the running containers to the probes.
pub async fn observe(context: &Context, state: &mut PodState, pod: &Arc<Pod>) -> Result<RuntimePod, Error> {
    let runtime = RuntimePod::read(&context.cri, pod::uid(pod)).await?;
    let now = Instant::now();
    for ended in runtime.containers.iter().filter(|c| is_exited(c)) {
        state.ended.entry(ended.id.clone()).or_insert_with(|| {
            let age = Duration::from_nanos((clock::now_nanos() - ended.finished_at).max(0).unsigned_abs());
            now.checked_sub(age).unwrap_or(now)
        });
        if !state.messages.contains_key(&ended.id) {
            let message = status::messages::read(ended).await;
            state.messages.insert(ended.id.clone(), message);
        }
    }
    let known: BTreeSet<&str> = runtime.containers.iter().map(|c| c.id.as_str()).collect();
    state.messages.retain(|id, _| known.contains(id.as_str()));
    state.ended.retain(|id, _| known.contains(id.as_str()));
    let ip = runtime.ips().first().cloned().filter(|ip| !ip.is_empty());
    let ip = ip.or_else(|| context.node_ips.first().cloned()).unwrap_or_default();
    let mut targets = Vec::new();
    for running in runtime.containers.iter().filter(|c| is_running(c)) {
        let name = crate::cri::snapshot::container_name(running);
        state.waiting.remove(name);
        if let Some(container) = pod::find_container(pod, name) {
            let target = ProbeTarget {
                pod: pod.clone(),
                container,
                id: running.id.clone(),
                started_at: running.started_at,
                ip: ip.clone(),
                known: status::health_shown(pod::status(pod), &context.runtime_name, &running.id),
            };
            targets.push(target);
        }
    }
    context.probes.reconcile(pod::uid(pod), targets);
    Ok(runtime)
}

/// Computes the pod's status and passes it to the status writer. A final phase is held back while a container
/// still runs, unless `terminal` is set.
pub fn publish(
    context: &Context,
    state: &PodState,
    pod: &Arc<Pod>,
    runtime: &RuntimePod,
    terminal: bool,
) -> PodStatus {
    let uid = pod::uid(pod);
    let previous = context.statuses.get(uid).unwrap_or_else(|| pod::status(pod).clone());
    let computed = status::generate(status::Inputs {
        pod,
        previous: &previous,
        runtime,
        waiting: &state.waiting,
        health: &context.probes.health(uid),
        messages: &state.messages,
        node_ips: &context.node_ips,
        runtime_name: &context.runtime_name,
        terminal,
        failed: state.failed.as_ref().map(|(reason, message)| (reason.as_str(), message.as_str())),
        now: &clock::now(),
    });
    let mut shown = computed.clone();
    if pod::is_terminal_phase(shown.phase.as_deref()) && runtime.any_running() && !terminal {
        shown.phase = previous.phase.clone().or_else(|| Some("Pending".to_owned()));
        shown.reason = previous.reason.clone();
        shown.message = previous.message.clone();
        shown.conditions = previous.conditions.clone();
    }
    context.statuses.set(pod, shown);
    computed
}

/// Enforces `activeDeadlineSeconds`: marks the pod failed if the deadline has passed, else returns the
/// deadline; `None` if the pod has none.
fn active_deadline(context: &Context, state: &mut PodState, pod: &Arc<Pod>) -> Option<Instant> {
    let seconds = pod::spec(pod).active_deadline_seconds?;
    let status = context.statuses.get(pod::uid(pod)).unwrap_or_else(|| pod::status(pod).clone());
    let started = status.start_time?;
    let left = started.0.as_second().saturating_add(seconds).saturating_sub(clock::now().0.as_second());
    if left <= 0 {
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        if state.failed.is_none() {
            context.events.pod_normal(pod, None, "DeadlineExceeded", message.clone());
        }
        state.failed = Some(("DeadlineExceeded".to_owned(), message));
        return None;
    }
    Instant::now().checked_add(Duration::from_secs(left.unsigned_abs()))
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Returns the pod's IP addresses: the node's if it uses the host network, else those the runtime reports.
pub fn pod_ips(context: &Context, pod: &Pod, runtime: &RuntimePod) -> Vec<String> {
    if pod::spec(pod).host_network.unwrap_or(false) { context.node_ips.clone() } else { runtime.ips() }
}

/// Input of one round of actions: the pod, its state in the runtime, and its mounted volumes.
pub(crate) struct Round<'a> {
    pub context: &'a Context,
    pub pod: &'a Arc<Pod>,
    pub runtime: &'a RuntimePod,
    pub volumes: &'a BTreeMap<String, MountedVolume>,
}

impl Round<'_> {
    /// Carries out `actions`. Returns whether to observe again at once, and when to retry what failed.
    async fn act(
        &self,
        state: &mut PodState,
        actions: actions::Actions,
    ) -> Result<(bool, Option<Instant>), Error> {
        if actions.kill_pod {
            if actions.create_sandbox.is_some() && !self.runtime.sandboxes.is_empty() {
                let message = "Pod sandbox changed, it will be killed and re-created.";
                self.context.events.pod_normal(self.pod, None, "SandboxChanged", message);
            }
            kill::pod(self.context, self.pod, self.runtime, pod::grace_seconds(self.pod)).await?;
            if actions.create_sandbox.is_none() {
                return Ok((false, None));
            }
        }
        for kill in &actions.to_kill {
            kill::for_action(self.context, self.pod, self.runtime, kill).await?;
        }
        let (sandbox, config, ips) = match actions.create_sandbox {
            Some(attempt) => match self.create_sandbox(attempt).await {
                Ok(made) => made,
                Err(error) => {
                    warn!(pod = %pod::display(self.pod), %error, "no sandbox");
                    let message = format!("Failed to create pod sandbox: {error}");
                    self.context.events.pod_warning(self.pod, None, "FailedCreatePodSandBox", message);
                    return Ok((false, Some(Instant::now() + RETRY / 5)));
                }
            },
            None => {
                let Some(current) = self.runtime.newest_sandbox() else {
                    return Ok((false, Some(Instant::now() + RETRY)));
                };
                let attempt = current.metadata.as_ref().map_or(0, |m| m.attempt);
                let config = sandbox::config(self.context, self.pod, attempt)?;
                (current.id.clone(), config, pod_ips(self.context, self.pod, self.runtime))
            }
        };
        let start = start::StartContext { round: self, sandbox: &sandbox, config: &config, ips: &ips };
        let spec = pod::spec(self.pod);
        let ephemeral = pod::ephemeral_containers(spec);
        let init = spec.init_containers.as_deref().unwrap_or_default();
        let chosen = actions.ephemeral_to_start.iter().filter_map(|i| ephemeral.get(*i));
        let chosen = chosen.chain(actions.init_to_start.iter().filter_map(|i| init.get(*i)));
        let chosen = chosen.chain(actions.to_start.iter().filter_map(|i| spec.containers.get(*i)));
        let mut progress = actions.create_sandbox.is_some();
        let mut retry_at = None;
        for container in chosen {
            match start.start(state, container).await {
                Ok(()) => {
                    state.waiting.remove(&container.name);
                    progress = true;
                }
                Err(failure) => {
                    debug!(pod = %pod::display(self.pod), container = container.name, ?failure, "not started");
                    state.waiting.insert(container.name.clone(), failure.waiting);
                    retry_at = earliest(retry_at, failure.retry_at);
                }
            }
        }
        // A failed start is retried at `retry_at`: observe again at once only if every start succeeded.
        Ok((progress && retry_at.is_none(), retry_at))
    }

    /// Returns the runtime handler of the pod's RuntimeClass (empty for the default): that of the pod's last
    /// sandbox, else the one in the API server.
    async fn runtime_handler(&self) -> Result<String, Error> {
        let Some(name) = pod::spec(self.pod).runtime_class_name.as_deref() else { return Ok(String::new()) };
        if let Some(before) = self.runtime.newest_sandbox() {
            return Ok(before.runtime_handler.clone());
        }
        let classes: kube::Api<RuntimeClass> = kube::Api::all(self.context.client.clone());
        match tokio::time::timeout(RETRY, classes.get(name)).await {
            Ok(Ok(class)) => Ok(class.handler),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                Err(Error::Invalid(format!("runtimeclass.node.k8s.io \"{name}\" not found")))
            }
            Ok(Err(error)) => Err(Error::Invalid(format!("failed to lookup RuntimeClass {name}: {error}"))),
            Err(_) => Err(Error::Invalid(format!("failed to lookup RuntimeClass {name}: timed out"))),
        }
    }

    async fn create_sandbox(
        &self,
        attempt: u32,
    ) -> Result<(String, k8s_cri::v1::PodSandboxConfig, Vec<String>), Error> {
        protection::sandbox(self.pod, &self.context.abilities).map_err(Error::Invalid)?;
        let handler = self.runtime_handler().await?;
        let config = sandbox::config(self.context, self.pod, attempt)?;
        let log_dir = std::path::Path::new(&config.log_directory);
        std::fs::create_dir_all(log_dir).map_err(|e| Error::io("make directory", log_dir, e))?;
        let cgroup = resources::cgroup_parent(&self.context.config.cgroup_root, self.pod);
        cgroups::create(&cgroup, &resources::pod_resources(self.pod));
        let id = self.context.cri.run_pod_sandbox(config.clone(), handler).await?;
        let status = self.context.cri.pod_sandbox_status(&id).await?;
        let runtime = RuntimePod { sandboxes: status.into_iter().collect(), ..Default::default() };
        Ok((id, config, pod_ips(self.context, self.pod, &runtime)))
    }
}
