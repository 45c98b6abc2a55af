//! Starts one container: back-off, image, configuration, create, start, postStart. Each failure has kubelet's
//! reason and event.

use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::{ContainerState, ContainerStatus, PodSandboxConfig};
use k8s_openapi::api::core::v1::Container;
use tokio::time::Instant;
use worker_volumes::pod_fields::PodFields;

use super::mounts::MountRequest;
use super::{PodState, RETRY, Round, container, kill};
use crate::cri::labels;
use crate::cri::snapshot::{is_exited, restart_count};
use crate::events::container_path;
use crate::status::Waiting;
use crate::{Error, env, images, lifecycle, pod};

/// A failed start of a container.
#[derive(Debug)]
pub struct StartFailure {
    /// Reason and message for the container's waiting state.
    pub waiting: Waiting,
    /// Time of the next try; `None` if only a change of the pod can help.
    pub retry_at: Option<Instant>,
}

impl StartFailure {
    fn new(reason: &str, message: impl Into<String>) -> Self {
        let waiting = Waiting { reason: reason.to_owned(), message: message.into() };
        Self { waiting, retry_at: Some(Instant::now() + RETRY) }
    }
}

/// Inputs for starting the containers of one pod: the current round, the sandbox's id and configuration, and
/// the pod's IP addresses.
pub struct StartContext<'a> {
    pub round: &'a Round<'a>,
    pub sandbox: &'a str,
    pub config: &'a PodSandboxConfig,
    pub ips: &'a [String],
}

impl StartContext<'_> {
    /// Starts the container; the error has the waiting state to show and the time of the next try.
    pub async fn start(&self, state: &mut PodState, container: &Container) -> Result<(), StartFailure> {
        self.back_off(state, container)?;
        let Round { context, pod, runtime, .. } = self.round;
        let path = container_path(pod, &container.name);
        let image =
            images::ensure(context, pod, container, self.config, &mut state.pulls).await.map_err(|e| {
                let message = format!("Error: {}", e.waiting.reason);
                context.events.pod_warning(pod, Some(&path), "Failed", message);
                StartFailure { waiting: e.waiting, retry_at: e.retry_at }
            })?;
        let attempt = runtime
            .container(&container.name)
            .map_or_else(|| self.lost_restarts(container), |c| restart_count(c) + 1);
        let config = match self.configure(state, container, image, attempt).await {
            Ok(config) => config,
            Err(message) => {
                context.events.pod_warning(pod, Some(&path), "Failed", format!("Error: {message}"));
                return Err(StartFailure::new("CreateContainerConfigError", message));
            }
        };
        self.remove_unstarted(container).await.map_err(|error| {
            context.events.pod_warning(pod, Some(&path), "Failed", format!("Error: {}", error.message()));
            StartFailure::new("CreateContainerError", error.message())
        })?;
        let id = match context.cri.create_container(self.sandbox, config, self.config.clone()).await {
            Ok(id) => id,
            Err(error) => {
                context.events.pod_warning(pod, Some(&path), "Failed", format!("Error: {}", error.message()));
                return Err(StartFailure::new("CreateContainerError", error.message()));
            }
        };
        context.events.pod_normal(pod, Some(&path), "Created", "Container created");
        if let Err(error) = context.cri.start_container(&id).await {
            context.events.pod_warning(pod, Some(&path), "Failed", format!("Error: {}", error.message()));
            return Err(StartFailure::new("RunContainerError", error.message()));
        }
        context.events.pod_normal(pod, Some(&path), "Started", "Container started");
        self.post_start(container, &id).await
    }

    /// Removes a container that was created but never seen running: its start may still be under way if the
    /// answer was lost, and two containers of one name must not run.
    async fn remove_unstarted(&self, container: &Container) -> Result<(), Error> {
        let created = |c: &&ContainerStatus| c.state == ContainerState::ContainerCreated as i32;
        for left in self.round.runtime.containers_named(&container.name).filter(created) {
            kill::ignore_missing(self.round.context.cri.remove_container(&left.id).await)?;
        }
        Ok(())
    }

    /// Checks the restart back-off (CrashLoopBackOff): each restart of an exited container waits longer.
    fn back_off(&self, state: &mut PodState, container: &Container) -> Result<(), StartFailure> {
        let Round { context, pod, runtime, .. } = self.round;
        let Some(ended) = runtime.container(&container.name).filter(|c| is_exited(c)) else { return Ok(()) };
        let hash = labels::container_hash(&container.name, container.image.as_deref().unwrap_or_default());
        let key = format!("{}/{hash}", container.name);
        let now = Instant::now();
        let finished = state.ended.get(&ended.id).copied().unwrap_or(now);
        if let Some(until) = state.restarts.waits_until(&key, finished, now) {
            let full = format!("{} in pod {}", container.name, pod::display(pod));
            let path = container_path(pod, &container.name);
            let waits_already =
                state.waiting.get(&container.name).is_some_and(|w| w.reason == "CrashLoopBackOff");
            if !waits_already {
                let message = format!("Back-off restarting failed container {full}");
                context.events.pod_warning(pod, Some(&path), "BackOff", message);
            }
            let delay = state.restarts.delay(&key).as_secs();
            let message = format!(
                "back-off {} restarting failed container={} pod={}",
                go_seconds(delay),
                container.name,
                pod::display(pod)
            );
            let waiting = Waiting { reason: "CrashLoopBackOff".to_owned(), message };
            return Err(StartFailure { waiting, retry_at: Some(until) });
        }
        state.restarts.step(&key, finished, now);
        Ok(())
    }

    /// Returns the restart count of a container the runtime has lost, derived from its remaining log files; 0
    /// if there are none.
    fn lost_restarts(&self, container: &Container) -> u32 {
        let dir = std::path::Path::new(&self.config.log_directory).join(&container.name);
        let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
        let counts = entries.filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.split('.').next()?.parse::<u32>().ok()
        });
        counts.max().map_or(0, |last| last + 1)
    }

    async fn configure(
        &self,
        state: &PodState,
        container: &Container,
        image: String,
        attempt: u32,
    ) -> Result<k8s_cri::v1::ContainerConfig, String> {
        let Round { context, pod, .. } = self.round;
        images::verify_non_root(context, pod, container, &image).await?;
        let fields = PodFields {
            pod,
            host_ips: &context.node_ips,
            pod_ips: self.ips,
            allocatable: &context.allocatable,
        };
        let environment = env::compute(fields, container, context.objects.as_ref(), &context.services)
            .await
            .map_err(|e| e.to_string())?;
        let request = MountRequest {
            pod: Arc::clone(pod),
            root_dir: context.config.root_dir.clone(),
            cluster_domain: context.config.cluster_domain.clone(),
            volumes: self.round.volumes.clone(),
            container: container.clone(),
            attempt,
            ips: self.ips.to_vec(),
            environment: environment.clone(),
            recursive_read_only: context.abilities.recursive_read_only,
        };
        // Mounts are prepared under the volume lock, with its deadline: a volume may be on a file system that
        // hangs.
        let mounts = state.volumes.lock().run(move || Ok(request.make())).await.map_err(|e| e.to_string())?;
        let mounts = mounts.map_err(|e| e.to_string())?;
        let log_dir = std::path::Path::new(&self.config.log_directory).join(&container.name);
        std::fs::create_dir_all(&log_dir).map_err(|e| e.to_string())?;
        let inputs = container::ContainerInputs { image, attempt, environment, mounts };
        container::config(context, pod, container, inputs)
    }

    async fn post_start(&self, container: &Container, id: &str) -> Result<(), StartFailure> {
        let Round { context, pod, .. } = self.round;
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else {
            return Ok(());
        };
        let ip = self.ips.first().map(String::as_str).unwrap_or_default();
        // Kubernetes sets no limit for a postStart hook; ten minutes keep a hung hook from blocking the pod
        // worker forever.
        let limit = Duration::from_secs(600);
        let Err(message) = lifecycle::run(&context.cri, container, id, ip, hook, limit).await else {
            return Ok(());
        };
        tracing::warn!(pod = %pod::display(pod), container = container.name, message, "postStart failed");
        let path = container_path(pod, &container.name);
        context.events.pod_warning(pod, Some(&path), "FailedPostStartHook", "PostStartHook failed");
        let target = kill::StopTarget { container: container.clone(), id: id.to_owned(), ip: ip.to_owned() };
        if let Err(error) =
            kill::container(context, pod, &target, "FailedPostStartHook", pod::grace_seconds(pod)).await
        {
            tracing::warn!(%error, "cannot stop the container of a failed hook");
        }
        Err(StartFailure {
            retry_at: Some(Instant::now()),
            ..StartFailure::new("PostStartHookError", message)
        })
    }
}

/// Formats whole seconds as Go does: `10s`, `1m20s`, `5m0s`.
fn go_seconds(seconds: u64) -> String {
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}
