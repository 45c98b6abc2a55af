//! Computes the phase of a pod, like kubelet's `getPhase`.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, PodSpec};

use crate::pod;

#[derive(Default)]
struct Counts {
    unknown: u32,
    running: u32,
    waiting: u32,
    stopped: u32,
    stopped_for_good: u32,
    succeeded: u32,
    pending_init: u32,
    pending_sidecars: u32,
    failed_init_for_good: u32,
}

/// The part of a container's status on which the phase depends.
enum ContainerOutcome {
    Running,
    /// Ended with this exit code, possibly waiting to be restarted.
    Ended(i32),
    Waiting,
    Unknown,
}

fn outcome_of(status: Option<&ContainerStatus>) -> (ContainerOutcome, bool) {
    let Some(status) = status else { return (ContainerOutcome::Unknown, false) };
    let state = status.state.clone().unwrap_or_default();
    if state.running.is_some() {
        return (ContainerOutcome::Running, false);
    }
    if let Some(ended) = state.terminated {
        return (ContainerOutcome::Ended(ended.exit_code), false);
    }
    if state.waiting.is_some() {
        let last = status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
        return last.map_or((ContainerOutcome::Waiting, true), |ended| {
            (ContainerOutcome::Ended(ended.exit_code), true)
        });
    }
    (ContainerOutcome::Unknown, false)
}

fn find<'a>(statuses: &'a [ContainerStatus], container: &Container) -> Option<&'a ContainerStatus> {
    statuses.iter().find(|s| s.name == container.name)
}

/// Computes the phase; `terminal` means that nothing will run again, `initialized` that a regular container
/// runs.
pub fn compute(
    spec: &PodSpec,
    init: &[ContainerStatus],
    regular: &[ContainerStatus],
    terminal: bool,
    initialized: bool,
) -> &'static str {
    let mut counts = Counts::default();
    for container in spec.init_containers.iter().flatten() {
        let status = find(init, container);
        if pod::is_sidecar(container) {
            count_sidecar(status, &mut counts);
        } else {
            count_init(container, spec, status, &mut counts);
        }
    }
    for container in &spec.containers {
        count_regular(container, spec, find(regular, container), &mut counts);
    }
    decide(&counts, terminal, initialized)
}

fn count_init(container: &Container, spec: &PodSpec, status: Option<&ContainerStatus>, counts: &mut Counts) {
    match outcome_of(status) {
        (ContainerOutcome::Ended(0), _) => {}
        (ContainerOutcome::Ended(code), _) => {
            counts.failed_init_for_good += u32::from(!pod::restarts_after(container, spec, code));
        }
        _ => counts.pending_init += 1,
    }
}

fn count_sidecar(status: Option<&ContainerStatus>, counts: &mut Counts) {
    match outcome_of(status) {
        (ContainerOutcome::Running, _) => {
            counts.running += 1;
            counts.pending_sidecars += u32::from(!status.and_then(|s| s.started).unwrap_or(false));
        }
        (ContainerOutcome::Ended(_), _) => {}
        (ContainerOutcome::Waiting, _) => {
            counts.pending_sidecars += 1;
            counts.waiting += 1;
        }
        (ContainerOutcome::Unknown, _) => counts.unknown += 1,
    }
}

fn count_regular(
    container: &Container,
    spec: &PodSpec,
    status: Option<&ContainerStatus>,
    counts: &mut Counts,
) {
    match outcome_of(status) {
        (ContainerOutcome::Running, _) => counts.running += 1,
        (ContainerOutcome::Ended(code), waiting) => {
            counts.stopped += 1;
            counts.stopped_for_good += u32::from(!pod::restarts_after(container, spec, code));
            counts.succeeded += u32::from(code == 0 && !waiting);
        }
        (ContainerOutcome::Waiting, _) => counts.waiting += 1,
        (ContainerOutcome::Unknown, _) => counts.unknown += 1,
    }
}

fn decide(counts: &Counts, terminal: bool, initialized: bool) -> &'static str {
    if counts.failed_init_for_good > 0 {
        return "Failed";
    }
    if counts.pending_init > 0 || (counts.pending_sidecars > 0 && !initialized) || counts.waiting > 0 {
        return "Pending";
    }
    if counts.unknown > 0 {
        return "Pending";
    }
    if counts.running > 0 {
        return "Running";
    }
    if counts.stopped == 0 {
        return "Pending";
    }
    let outcome = if counts.stopped == counts.succeeded { "Succeeded" } else { "Failed" };
    if terminal || counts.stopped == counts.stopped_for_good { outcome } else { "Running" }
}
