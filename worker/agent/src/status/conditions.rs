//! Computes the conditions of a pod that its node owns; all others are kept from the API server.

use k8s_openapi::api::core::v1::PodCondition;

use super::Inputs;
use super::containers::{Lists, by_name};
use crate::pod;
use crate::sync::actions::sandbox_attempt;

/// The condition types owned by the node.
pub const OWNED: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// Status, reason and message of one condition.
struct Verdict {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Self {
        Self { status: true, reason: None, message: None }
    }

    fn no(reason: &'static str, message: Option<String>) -> Self {
        Self { status: false, reason: Some(reason), message }
    }
}

/// Computes all conditions, in kubelet's order, after those of other owners.
pub fn compute(inputs: &Inputs<'_>, phase: &str, lists: &Lists) -> Vec<PodCondition> {
    let mut conditions: Vec<PodCondition> = pod::status(inputs.pod)
        .conditions
        .iter()
        .flatten()
        .filter(|c| !OWNED.contains(&c.type_.as_str()))
        .cloned()
        .collect();
    let has_sandbox = sandbox_attempt(pod::spec(inputs.pod), inputs.runtime).is_none();
    let sandbox = Verdict { status: has_sandbox, reason: None, message: None };
    let initialized = initialized(inputs, phase, lists);
    let ready = ready(inputs, phase, lists, &conditions);
    let containers_ready = containers_ready(inputs, phase, lists);
    let verdicts = [sandbox, initialized, ready, containers_ready, Verdict::yes()];
    for (type_, verdict) in OWNED.into_iter().zip(verdicts) {
        conditions.push(condition(inputs, type_, verdict));
    }
    conditions
}

fn condition(inputs: &Inputs<'_>, type_: &str, verdict: Verdict) -> PodCondition {
    let status = if verdict.status { "True" } else { "False" };
    let find =
        |list: Option<&Vec<PodCondition>>| list.into_iter().flatten().find(|c| c.type_ == type_).cloned();
    let old = find(inputs.previous.conditions.as_ref())
        .or_else(|| find(pod::status(inputs.pod).conditions.as_ref()));
    let since = old.filter(|c| c.status == status).and_then(|c| c.last_transition_time);
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: since.or_else(|| Some(inputs.now.clone())),
        observed_generation: inputs.pod.metadata.generation,
        ..Default::default()
    }
}

/// Formats a list like Go's `%s` of a string slice.
fn names(list: &[&str]) -> String {
    format!("[{}]", list.join(" "))
}

fn initialized(inputs: &Inputs<'_>, phase: &str, lists: &Lists) -> Verdict {
    let statuses = by_name(lists);
    let mut incomplete = Vec::new();
    for container in pod::spec(inputs.pod).init_containers.iter().flatten() {
        let done = statuses.get(container.name.as_str()).is_some_and(|status| {
            if pod::is_sidecar(container) { status.started == Some(true) } else { status.ready }
        });
        if !done {
            incomplete.push(container.name.as_str());
        }
    }
    if phase == "Succeeded" {
        return Verdict { status: true, reason: Some("PodCompleted"), message: None };
    }
    let any_started = lists.regular.iter().any(|status| {
        let ended = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
            state.as_ref().is_some_and(|s| s.terminated.is_some() || s.running.is_some())
        };
        ended(&status.state) || ended(&status.last_state)
    });
    if any_started || incomplete.is_empty() {
        return Verdict::yes();
    }
    Verdict::no(
        "ContainersNotInitialized",
        Some(format!("containers with incomplete status: {}", names(&incomplete))),
    )
}

fn containers_ready(inputs: &Inputs<'_>, phase: &str, lists: &Lists) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::no("PodCompleted", None),
        "Failed" => return Verdict::no("PodFailed", None),
        _ => {}
    }
    let statuses = by_name(lists);
    let spec = pod::spec(inputs.pod);
    let sidecars = spec.init_containers.iter().flatten().filter(|c| pod::is_sidecar(c));
    let unready: Vec<&str> = sidecars
        .chain(&spec.containers)
        .map(|c| c.name.as_str())
        .filter(|name| !statuses.get(name).is_some_and(|s| s.ready))
        .collect();
    if unready.is_empty() {
        return Verdict::yes();
    }
    Verdict::no("ContainersNotReady", Some(format!("containers with unready status: {}", names(&unready))))
}

fn ready(inputs: &Inputs<'_>, phase: &str, lists: &Lists, others: &[PodCondition]) -> Verdict {
    let containers = containers_ready(inputs, phase, lists);
    if !containers.status {
        return containers;
    }
    let mut unmet = Vec::new();
    for gate in pod::spec(inputs.pod).readiness_gates.iter().flatten() {
        match others.iter().find(|c| c.type_ == gate.condition_type) {
            None => unmet.push(format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist.",
                gate.condition_type
            )),
            Some(c) if c.status != "True" => unmet.push(format!(
                "the status of pod readiness gate \"{}\" is not \"True\", but {}",
                gate.condition_type, c.status
            )),
            Some(_) => {}
        }
    }
    if unmet.is_empty() {
        Verdict::yes()
    } else {
        Verdict::no("ReadinessGatesNotReady", Some(unmet.join(", ")))
    }
}
