//! Container statuses: kubelet's `convertToAPIContainerStatuses`.

use std::collections::BTreeMap;

use k8s_cri::v1::{ContainerState as CriState, ContainerStatus as CriStatus};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, LinuxContainerUser, VolumeMountStatus,
};

use super::Inputs;
use crate::cri::snapshot::{is_exited, is_running, restart_count};
use crate::{clock, pod};

/// Statuses of all containers, each list in the order shown to clients.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// Init containers, in the order of the specification.
    pub init: Vec<ContainerStatus>,
    /// Regular containers, by name.
    pub regular: Vec<ContainerStatus>,
    /// Ephemeral containers, by name.
    pub ephemeral: Vec<ContainerStatus>,
}

/// Computes the statuses of all containers of the pod.
pub fn convert(inputs: &Inputs<'_>) -> Lists {
    let spec = pod::spec(inputs.pod);
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let has_init = !init.is_empty();
    let list = |containers: &[Container],
                previous: Option<&Vec<ContainerStatus>>,
                has_init: bool|
     -> Vec<ContainerStatus> {
        let previous = previous.map(Vec::as_slice).unwrap_or_default();
        let one =
            |c: &Container| convert_one(inputs, c, previous.iter().find(|s| s.name == c.name), has_init);
        containers.iter().map(one).collect()
    };
    let mut lists = Lists {
        init: list(init, inputs.previous.init_container_statuses.as_ref(), has_init),
        regular: list(&spec.containers, inputs.previous.container_statuses.as_ref(), has_init),
        ephemeral: list(
            &pod::ephemeral_containers(spec),
            inputs.previous.ephemeral_container_statuses.as_ref(),
            false,
        ),
    };
    lists.regular.sort_by(|a, b| a.name.cmp(&b.name));
    lists.ephemeral.sort_by(|a, b| a.name.cmp(&b.name));
    lists
}

fn convert_one(
    inputs: &Inputs<'_>,
    container: &Container,
    old: Option<&ContainerStatus>,
    has_init: bool,
) -> ContainerStatus {
    let mut found = inputs.runtime.containers_named(&container.name);
    let newest = found.next();
    let mut status = match newest {
        Some(current) => {
            let mut status = from_runtime(inputs, container, current);
            status.last_state = found
                .next()
                .map(|earlier| state_of(inputs, earlier))
                .or_else(|| {
                    old.filter(|o| o.restart_count == status.restart_count).and_then(|o| o.last_state.clone())
                })
                .or_else(|| old.and_then(ended_before(&status)));
            status
        }
        None => without_runtime(inputs, container, old, has_init),
    };
    wait_if_start_failed(inputs, container, newest, &mut status);
    readiness(inputs, container, newest, &mut status);
    status.last_state.get_or_insert_default();
    status
}

/// Returns a filter that yields the old state if it is the end of an earlier container: used when the runtime
/// no longer has that container.
fn ended_before(status: &ContainerStatus) -> impl FnOnce(&ContainerStatus) -> Option<ContainerState> {
    let id = status.container_id.clone();
    move |old| old.state.clone().filter(|s| s.terminated.is_some() && old.container_id != id)
}

fn base(container: &Container) -> ContainerStatus {
    let mounts: Vec<VolumeMountStatus> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only.filter(|ro| *ro),
            recursive_read_only: mount.read_only.filter(|ro| *ro).map(|_| "Disabled".to_owned()),
        })
        .collect();
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        volume_mounts: Some(mounts).filter(|mounts| !mounts.is_empty()),
        ..Default::default()
    }
}

fn from_runtime(inputs: &Inputs<'_>, container: &Container, current: &CriStatus) -> ContainerStatus {
    let mut status = base(container);
    status.container_id = Some(container_id(inputs, current));
    status.restart_count = i32::try_from(restart_count(current)).unwrap_or(i32::MAX);
    if let Some(image) = current.image.as_ref().filter(|image| !image.image.is_empty()) {
        let shown =
            if image.user_specified_image.is_empty() { &image.image } else { &image.user_specified_image };
        status.image.clone_from(shown);
    }
    status.image_id.clone_from(&current.image_ref);
    status.state = Some(state_of(inputs, current));
    status.resources = Some(container.resources.clone().unwrap_or_default());
    status.allocated_resources = container.resources.as_ref().and_then(|r| r.requests.clone());
    status.user = current.user.as_ref().and_then(|user| user.linux.as_ref()).map(|linux| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: linux.uid,
            gid: linux.gid,
            supplemental_groups: Some(linux.supplemental_groups.clone()).filter(|groups| !groups.is_empty()),
        }),
    });
    status
}

fn container_id(inputs: &Inputs<'_>, current: &CriStatus) -> String {
    format!("{}://{}", inputs.runtime_name, current.id)
}

fn state_of(inputs: &Inputs<'_>, current: &CriStatus) -> ContainerState {
    if is_running(current) {
        let started_at = clock::from_nanos(current.started_at);
        return ContainerState { running: Some(ContainerStateRunning { started_at }), ..Default::default() };
    }
    if is_exited(current) {
        // What the runtime says comes before what the container wrote, as in kubelet.
        let written = inputs.messages.get(&current.id).map_or("", String::as_str);
        let messages: Vec<&str> =
            [current.message.as_str(), written].into_iter().filter(|m| !m.is_empty()).collect();
        // Kubelet shows the start of Unix time where the runtime gives no time.
        let time = |nanos| clock::from_nanos(nanos).or(Some(clock::from_seconds(0)));
        let reason = if current.reason.is_empty() {
            if current.exit_code == 0 { "Completed" } else { "Error" }
        } else {
            current.reason.as_str()
        };
        let terminated = ContainerStateTerminated {
            container_id: Some(container_id(inputs, current)),
            exit_code: current.exit_code,
            reason: Some(reason.to_owned()),
            message: Some(messages.join(": ")).filter(|m| !m.is_empty()),
            started_at: time(current.started_at),
            finished_at: time(current.finished_at),
            ..Default::default()
        };
        return ContainerState { terminated: Some(terminated), ..Default::default() };
    }
    if inputs.terminal && current.state == CriState::ContainerUnknown as i32 {
        return lost("The container could not be located when the pod was terminated");
    }
    ContainerState { waiting: Some(ContainerStateWaiting::default()), ..Default::default() }
}

fn lost(message: &str) -> ContainerState {
    let terminated = ContainerStateTerminated {
        reason: Some("ContainerStatusUnknown".to_owned()),
        message: Some(message.to_owned()),
        exit_code: 137,
        ..Default::default()
    };
    ContainerState { terminated: Some(terminated), ..Default::default() }
}

/// Computes the status of a container the runtime does not have: a finished one keeps its status, a running
/// one counts as lost.
fn without_runtime(
    inputs: &Inputs<'_>,
    container: &Container,
    old: Option<&ContainerStatus>,
    has_init: bool,
) -> ContainerStatus {
    let mut status = base(container);
    let reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message: None };
    status.state = Some(ContainerState { waiting: Some(waiting), ..Default::default() });
    let Some(old) = old else { return status };
    let old_state = old.state.clone().unwrap_or_default();
    if old_state.terminated.is_some() {
        return old.clone();
    }
    status.restart_count = old.restart_count;
    status.last_state = old.last_state.clone();
    if old_state.running.is_some() {
        let had_last = status.last_state.as_ref().is_some_and(|s| s.terminated.is_some());
        if inputs.terminal {
            status.state = Some(lost("The container could not be located when the pod was terminated"));
        } else if !had_last {
            status.last_state = Some(lost(
                "The container could not be located when the pod was deleted.  The container used to be Running",
            ));
        }
        if !pod::is_terminating(inputs.pod) && !inputs.terminal {
            status.restart_count += 1;
        }
    }
    status
}

/// Shows the reason of a failed start as the waiting state, if the container is to be started (again).
fn wait_if_start_failed(
    inputs: &Inputs<'_>,
    container: &Container,
    newest: Option<&CriStatus>,
    status: &mut ContainerStatus,
) {
    let Some(waiting) = inputs.waiting.get(&container.name) else { return };
    let restarts = match newest {
        Some(current) if is_running(current) => false,
        Some(current) if is_exited(current) => {
            pod::restarts_after(container, pod::spec(inputs.pod), current.exit_code)
        }
        _ => true,
    };
    if inputs.terminal || pod::is_terminating(inputs.pod) || !restarts {
        return;
    }
    if status.state.as_ref().is_some_and(|s| s.terminated.is_some()) {
        status.last_state = status.state.take();
    }
    let state = ContainerStateWaiting {
        reason: Some(waiting.reason.clone()),
        message: Some(waiting.message.clone()).filter(|m| !m.is_empty()),
    };
    status.state = Some(ContainerState { waiting: Some(state), ..Default::default() });
}

fn readiness(
    inputs: &Inputs<'_>,
    container: &Container,
    newest: Option<&CriStatus>,
    status: &mut ContainerStatus,
) {
    let state = status.state.clone().unwrap_or_default();
    let is_step = pod::is_init(pod::spec(inputs.pod), &container.name) && !pod::is_sidecar(container);
    if is_step {
        status.started = Some(state.running.is_some());
        status.ready = state.terminated.is_some_and(|t| t.exit_code == 0);
        return;
    }
    let health = newest.and_then(|c| inputs.health.get(&c.id)).copied().unwrap_or_default();
    let running = state.running.is_some();
    let started = running && (container.startup_probe.is_none() || health.startup == Some(true));
    status.started = Some(started);
    status.ready = started && (container.readiness_probe.is_none() || health.readiness == Some(true));
}

/// Indexes the statuses of init and regular containers by name.
pub fn by_name(lists: &Lists) -> BTreeMap<&str, &ContainerStatus> {
    lists.init.iter().chain(&lists.regular).map(|s| (s.name.as_str(), s)).collect()
}
