//! Computes the status of a pod for the API server from the specification, the runtime and the probes.
//! [`generate`] is pure; [`writer`] writes its results to the API server.

pub mod conditions;
pub mod containers;
pub mod messages;
pub mod phase;
pub mod writer;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{HostIP, Pod, PodCondition, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::cri::snapshot::{RuntimePod, is_running};
use crate::probes::ContainerHealth;
use crate::{pod, resources};

/// Reason why a container that is not running is waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Value of `state.waiting.reason`, such as `CrashLoopBackOff`.
    pub reason: String,
    /// Value of `state.waiting.message`; may be empty.
    pub message: String,
}

/// Inputs from which a status is computed.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The pod object from the API server.
    pub pod: &'a Pod,
    /// Status computed last; after a restart of the agent, the API server's.
    pub previous: &'a PodStatus,
    /// State of the pod in the runtime.
    pub runtime: &'a RuntimePod,
    /// Reason and message of each failed start, by container name.
    pub waiting: &'a BTreeMap<String, Waiting>,
    /// Probe results by container id.
    pub health: &'a BTreeMap<String, ContainerHealth>,
    /// Termination messages, by container id.
    pub messages: &'a BTreeMap<String, String>,
    /// IP addresses of the node.
    pub node_ips: &'a [String],
    /// Name of the runtime, the scheme in container ids.
    pub runtime_name: &'a str,
    /// Whether nothing of the pod will run again, whatever its restart policy says.
    pub terminal: bool,
    /// Reason and message with which phase Failed is forced; `None` if it is not.
    pub failed: Option<(&'a str, &'a str)>,
    /// Current time.
    pub now: &'a Time,
}

/// Computes the status of a pod.
pub fn generate(inputs: Inputs<'_>) -> PodStatus {
    let spec = pod::spec(inputs.pod);
    let api_status = pod::status(inputs.pod);
    let mut status = PodStatus {
        start_time: inputs.previous.start_time.clone().or_else(|| Some(inputs.now.clone())),
        qos_class: Some(
            inputs
                .previous
                .qos_class
                .clone()
                .unwrap_or_else(|| resources::qos(inputs.pod).as_str().to_owned()),
        ),
        observed_generation: inputs.pod.metadata.generation,
        nominated_node_name: api_status.nominated_node_name.clone(),
        ..Default::default()
    };
    let lists = containers::convert(&inputs);
    let initialized =
        spec.containers.iter().any(|c| inputs.runtime.container(&c.name).is_some_and(is_running));
    let computed = phase::compute(spec, &lists.init, &lists.regular, inputs.terminal, initialized);
    let sticky = [inputs.previous.phase.as_deref(), api_status.phase.as_deref()]
        .into_iter()
        .find(|phase| pod::is_terminal_phase(*phase))
        .flatten();
    let phase = sticky.filter(|_| !pod::is_terminal_phase(Some(computed))).unwrap_or(computed).to_owned();
    if Some(phase.as_str()) == inputs.previous.phase.as_deref() {
        status.reason = inputs.previous.reason.clone();
        status.message = inputs.previous.message.clone();
    }
    status.phase = Some(phase);
    if let Some((reason, message)) = inputs.failed {
        status.phase = Some("Failed".to_owned());
        status.reason = Some(reason.to_owned());
        status.message = Some(message.to_owned());
    }
    if pod::is_terminal_phase(api_status.phase.as_deref()) {
        status.phase = api_status.phase.clone();
    }
    status.conditions =
        Some(conditions::compute(&inputs, status.phase.as_deref().unwrap_or_default(), &lists));
    status.init_container_statuses = Some(lists.init).filter(|list| !list.is_empty());
    status.container_statuses = Some(lists.regular);
    status.ephemeral_container_statuses = Some(lists.ephemeral).filter(|list| !list.is_empty());
    addresses(&inputs, &mut status);
    status
}

fn addresses(inputs: &Inputs<'_>, status: &mut PodStatus) {
    status.host_ip = inputs.node_ips.first().cloned();
    status.host_ips = Some(inputs.node_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect());
    let mut ips = inputs.runtime.ips();
    if ips.is_empty() {
        let known = inputs.previous.pod_ips.iter().flatten().map(|ip| ip.ip.clone());
        ips = known.filter(|ip| !ip.is_empty()).collect();
    }
    if pod::spec(inputs.pod).host_network.unwrap_or(false) {
        ips = inputs.node_ips.to_vec();
    }
    status.pod_ip = ips.first().cloned();
    status.pod_ips =
        Some(ips.into_iter().map(|ip| PodIP { ip }).collect::<Vec<_>>()).filter(|ips| !ips.is_empty());
}

/// Returns the probe results implied by the status of the container with this runtime id; none if the status
/// shows another container. A container shown as not ready or not started has no result: its probes decide.
pub fn health_shown(status: &PodStatus, runtime_name: &str, id: &str) -> ContainerHealth {
    let wanted = format!("{runtime_name}://{id}");
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let shown = lists.into_iter().flatten().flatten().find(|s| s.container_id.as_deref() == Some(&*wanted));
    ContainerHealth {
        startup: shown.and_then(|s| s.started).filter(|started| *started),
        readiness: shown.map(|s| s.ready).filter(|ready| *ready),
        liveness: None,
    }
}

/// Builds the status of a pod that this node refuses to run: phase Failed with reason and message.
pub fn rejected(pod: &Pod, reason: &str, message: &str, now: &Time, node_ips: &[String]) -> PodStatus {
    let kept: Vec<PodCondition> = pod::status(pod).conditions.clone().unwrap_or_default();
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(format!("Pod was rejected: {message}")),
        qos_class: Some(resources::qos(pod).as_str().to_owned()),
        start_time: Some(now.clone()),
        host_ip: node_ips.first().cloned(),
        observed_generation: pod.metadata.generation,
        conditions: Some(kept),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;
