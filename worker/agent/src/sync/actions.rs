//! Decides the next actions for a pod from its specification and its state in the runtime: a pure function,
//! kubelet's `computePodActions`. `sync::sync` carries the actions out.

use std::collections::BTreeMap;

use k8s_cri::v1::{ContainerState, ContainerStatus, NamespaceMode, PodSandboxStatus};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::cri::labels;
use crate::cri::snapshot::{RuntimePod, container_name, is_exited, is_ready, is_running};
use crate::pod;
use crate::probes::ContainerHealth;

/// A running container that must be stopped, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Id of the container.
    pub id: String,
    /// Name of the container.
    pub name: String,
    /// Message of the Killing event.
    pub message: String,
    /// The failed probe, whose own grace period then applies; `None` if the reason is another.
    pub probe: Option<FailedProbe>,
}

/// Probes whose failure stops the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedProbe {
    /// The container's `livenessProbe`.
    Liveness,
    /// The container's `startupProbe`.
    Startup,
}

/// Actions that one round of a sync carries out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// Whether all containers and the sandbox are stopped (and nothing is started unless `create_sandbox` is
    /// set).
    pub kill_pod: bool,
    /// Attempt number of the new sandbox to create; `None` to keep the current one.
    pub create_sandbox: Option<u32>,
    /// Init containers to start, by index.
    pub init_to_start: Vec<usize>,
    /// Regular containers to start, by index.
    pub to_start: Vec<usize>,
    /// Ephemeral containers to start, by index.
    pub ephemeral_to_start: Vec<usize>,
    /// Containers to stop before others are started.
    pub to_kill: Vec<Kill>,
}

/// Computes the actions; `health` has the probe results of running containers by id.
pub fn compute(pod: &Pod, runtime: &RuntimePod, health: &BTreeMap<String, ContainerHealth>) -> Actions {
    let spec = pod::spec(pod);
    if let Some(attempt) = sandbox_attempt(spec, runtime) {
        return with_new_sandbox(pod, runtime, attempt);
    }
    let sandbox = runtime.newest_sandbox().map(|s| s.id.as_str()).unwrap_or_default();
    let scope = Scope { spec, runtime, sandbox, health };
    let mut actions = Actions { to_kill: scope.superseded(), ..Default::default() };
    for (index, container) in spec.ephemeral_containers.iter().flatten().enumerate() {
        if scope.current(&container.name).is_none() {
            actions.ephemeral_to_start.push(index);
        }
    }
    let initialized = scope.init_containers(&mut actions);
    if actions.kill_pod || !initialized {
        return actions;
    }
    let mut keep = 0;
    for (index, container) in spec.containers.iter().enumerate() {
        keep += usize::from(scope.regular_container(index, container, &mut actions));
    }
    if keep == 0 && actions.to_start.is_empty() {
        actions.kill_pod = true;
        actions.init_to_start.clear();
    }
    actions
}

/// Returns the attempt number of the sandbox to create; `None` if the current one is usable.
pub fn sandbox_attempt(spec: &PodSpec, runtime: &RuntimePod) -> Option<u32> {
    let Some(newest) = runtime.newest_sandbox() else { return Some(0) };
    let attempt = newest.metadata.as_ref().map_or(0, |m| m.attempt);
    let ready = runtime.sandboxes.iter().filter(|s| is_ready(s)).count();
    let host_network = spec.host_network.unwrap_or(false);
    let has_ip = newest.network.as_ref().is_some_and(|n| !n.ip.is_empty());
    let fits = ready == 1
        && is_ready(newest)
        && uses_host_network(newest).is_none_or(|host| host == host_network)
        && (host_network || has_ip);
    if fits { None } else { Some(attempt + 1) }
}

fn uses_host_network(sandbox: &PodSandboxStatus) -> Option<bool> {
    let options = sandbox.linux.as_ref()?.namespaces.as_ref()?.options.as_ref()?;
    Some(options.network == NamespaceMode::Node as i32)
}

fn with_new_sandbox(pod: &Pod, runtime: &RuntimePod, attempt: u32) -> Actions {
    let spec = pod::spec(pod);
    let mut actions = Actions { kill_pod: true, create_sandbox: Some(attempt), ..Default::default() };
    if pod::restart_policy(spec) == "Never" && attempt != 0 && !runtime.containers.is_empty() {
        actions.create_sandbox = None;
        return actions;
    }
    let succeeded =
        |c: &Container| runtime.container(&c.name).is_some_and(|s| is_exited(s) && s.exit_code == 0);
    let policy =
        |c: &Container| c.restart_policy.clone().unwrap_or_else(|| pod::restart_policy(spec).to_owned());
    let to_start: Vec<usize> = spec
        .containers
        .iter()
        .enumerate()
        .filter(|(_, c)| !(policy(c) == "OnFailure" && succeeded(c)))
        .map(|(index, _)| index)
        .collect();
    let initialized = spec.containers.iter().any(|c| runtime.container(&c.name).is_some());
    if to_start.is_empty() && initialized {
        actions.create_sandbox = None;
    } else if spec.init_containers.as_ref().is_some_and(|init| !init.is_empty()) {
        actions.init_to_start = vec![0];
    } else {
        actions.to_start = to_start;
    }
    actions
}

struct Scope<'a> {
    spec: &'a PodSpec,
    runtime: &'a RuntimePod,
    sandbox: &'a str,
    health: &'a BTreeMap<String, ContainerHealth>,
}

impl Scope<'_> {
    /// Returns the newest container of this name in the current sandbox. Containers of older sandboxes are
    /// ignored: they belong to earlier runs of the pod.
    fn current(&self, name: &str) -> Option<&ContainerStatus> {
        self.runtime.containers.iter().find(|c| self.in_sandbox(c) && container_name(c) == name)
    }

    /// Returns the running containers that are not the newest of their name. There is one when a start took
    /// effect although its answer was lost.
    fn superseded(&self) -> Vec<Kill> {
        let running = self.runtime.containers.iter().filter(|c| is_running(c));
        let older =
            running.filter(|c| self.current(container_name(c)).is_some_and(|newest| newest.id != c.id));
        older
            .map(|c| {
                let name = container_name(c).to_owned();
                let message = format!("Container {name} was started again, stopping the older one");
                Kill { id: c.id.clone(), name, message, probe: None }
            })
            .collect()
    }

    fn in_sandbox(&self, container: &ContainerStatus) -> bool {
        self.runtime.sandbox_of.get(&container.id).is_none_or(|sandbox| sandbox == self.sandbox)
    }

    /// Adds the actions for the init containers, in order. Returns whether the regular containers may start.
    fn init_containers(&self, actions: &mut Actions) -> bool {
        let any_regular = self.spec.containers.iter().any(|c| self.current(&c.name).is_some());
        for (index, container) in self.spec.init_containers.iter().flatten().enumerate() {
            let status = self.current(&container.name);
            if pod::is_sidecar(container) {
                let started = self.sidecar(index, container, status, actions);
                if !started && !any_regular {
                    return false;
                }
                continue;
            }
            if any_regular {
                continue;
            }
            match status {
                Some(status) if is_running(status) => return false,
                Some(status) if is_exited(status) && status.exit_code == 0 => {}
                Some(status) if is_exited(status) => {
                    if pod::restarts_after(container, self.spec, status.exit_code) {
                        actions.init_to_start.push(index);
                    } else {
                        actions.kill_pod = true;
                    }
                    return false;
                }
                _ => {
                    actions.to_kill.extend(status.and_then(|s| unknown(container, s, "Init container")));
                    actions.init_to_start.push(index);
                    return false;
                }
            }
        }
        true
    }

    /// Adds the actions for a sidecar. Returns whether it has started (it runs and its startup probe has
    /// passed).
    fn sidecar(
        &self,
        index: usize,
        container: &Container,
        status: Option<&ContainerStatus>,
        actions: &mut Actions,
    ) -> bool {
        let Some(status) = status.filter(|s| is_running(s)) else {
            actions.to_kill.extend(status.and_then(|s| unknown(container, s, "Init container")));
            actions.init_to_start.push(index);
            return false;
        };
        if let Some(kill) = self.reason_to_kill(container, status, true) {
            actions.to_kill.push(kill);
            actions.init_to_start.push(index);
            return false;
        }
        container.startup_probe.is_none()
            || self.health.get(&status.id).is_some_and(|h| h.startup == Some(true))
    }

    /// Adds the actions for a regular container. Returns whether it runs and keeps running.
    fn regular_container(&self, index: usize, container: &Container, actions: &mut Actions) -> bool {
        let Some(status) = self.current(&container.name) else {
            actions.to_start.push(index);
            return false;
        };
        if is_running(status) {
            let restart =
                container.restart_policy.as_deref().unwrap_or_else(|| pod::restart_policy(self.spec))
                    != "Never";
            let Some(kill) = self.reason_to_kill(container, status, restart) else { return true };
            if kill.message.ends_with("will be restarted") {
                actions.to_start.push(index);
            }
            actions.to_kill.push(kill);
            return false;
        }
        if !is_exited(status) || pod::restarts_after(container, self.spec, status.exit_code) {
            actions.to_kill.extend(unknown(container, status, "Container"));
            actions.to_start.push(index);
        }
        false
    }

    fn reason_to_kill(&self, container: &Container, status: &ContainerStatus, restart: bool) -> Option<Kill> {
        let health = self.health.get(&status.id).copied().unwrap_or_default();
        let wanted = labels::container_hash(&container.name, container.image.as_deref().unwrap_or_default());
        let changed = status.annotations.get(labels::HASH).is_some_and(|hash| *hash != wanted);
        let (text, probe, restart) = if changed {
            ("definition changed", None, true)
        } else if health.liveness == Some(false) {
            ("failed liveness probe", Some(FailedProbe::Liveness), restart)
        } else if health.startup == Some(false) {
            ("failed startup probe", Some(FailedProbe::Startup), restart)
        } else {
            return None;
        };
        let suffix = if restart { ", will be restarted" } else { "" };
        let message = format!("Container {} {text}{suffix}", container.name);
        Some(Kill { id: status.id.clone(), name: container.name.clone(), message, probe })
    }
}

/// Returns the kill of a container in state Unknown, which may run: without it a replacement would run beside
/// it. `None` for any other state.
fn unknown(container: &Container, status: &ContainerStatus, what: &str) -> Option<Kill> {
    (status.state == ContainerState::ContainerUnknown as i32).then(|| Kill {
        id: status.id.clone(),
        name: container.name.clone(),
        message: format!("{what} is in \"unknown\" state, try killing it before restart"),
        probe: None,
    })
}

#[cfg(test)]
#[path = "actions_tests.rs"]
mod tests;
