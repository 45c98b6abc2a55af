//! Stops containers and whole pods: preStop hook, stop signal, grace period, order.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::actions::{FailedProbe, Kill};
use crate::context::Context;
use crate::cri::snapshot::{RuntimePod, container_name, is_ready, is_running};
use crate::events::container_path;
use crate::{Error, lifecycle, pod};

/// Minimum grace period left for a container after its preStop hook, as in kubelet.
const MIN_GRACE_SECONDS: i64 = 2;

/// A running container to stop.
#[derive(Clone, Debug)]
pub struct StopTarget {
    /// Specification of the container; only the name if the pod no longer has it.
    pub container: Container,
    /// Id of the container.
    pub id: String,
    /// Address of the pod, for HTTP hooks.
    pub ip: String,
}

fn target(context: &Context, pod: &Pod, runtime: &RuntimePod, name: &str, id: &str) -> StopTarget {
    let container = pod::find_container(pod, name)
        .unwrap_or_else(|| Container { name: name.to_owned(), ..Default::default() });
    let ip = super::pod_ips(context, pod, runtime).first().cloned().unwrap_or_default();
    StopTarget { container, id: id.to_owned(), ip }
}

/// Stops the container that an action names, with the failed probe's own grace period if it has one.
pub async fn for_action(
    context: &Context,
    pod: &Arc<Pod>,
    runtime: &RuntimePod,
    kill: &Kill,
) -> Result<(), Error> {
    let target = target(context, pod, runtime, &kill.name, &kill.id);
    let probe = match kill.probe {
        Some(FailedProbe::Liveness) => target.container.liveness_probe.as_ref(),
        Some(FailedProbe::Startup) => target.container.startup_probe.as_ref(),
        None => None,
    };
    let grace = probe.and_then(|p| p.termination_grace_period_seconds);
    let grace = grace.unwrap_or_else(|| pod::spec(pod).termination_grace_period_seconds.unwrap_or(30));
    container(context, pod, &target, &kill.message, grace).await
}

/// Stops one container: writes an event, runs preStop within the grace period, then stops the container with
/// the rest of the period.
pub async fn container(
    context: &Context,
    pod: &Pod,
    target: &StopTarget,
    message: &str,
    grace_seconds: i64,
) -> Result<(), Error> {
    let path = container_path(pod, &target.container.name);
    context.events.pod_normal(pod, Some(&path), "Killing", message);
    let began = Instant::now();
    let hook = target.container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
    if let Some(hook) = hook.filter(|_| grace_seconds > 0) {
        let limit = Duration::from_secs(grace_seconds.unsigned_abs());
        let outcome =
            lifecycle::run(&context.cri, &target.container, &target.id, &target.ip, hook, limit).await;
        if let Err(message) = outcome {
            debug!(pod = %pod::display(pod), container = target.container.name, message, "preStop failed");
            context.events.pod_warning(pod, Some(&path), "FailedPreStopHook", "PreStopHook failed");
        }
    }
    let spent = i64::try_from(began.elapsed().as_secs()).unwrap_or(i64::MAX);
    let left = if spent == 0 { grace_seconds } else { (grace_seconds - spent).max(MIN_GRACE_SECONDS) };
    match context.cri.stop_container(&target.id, left).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// Stops everything of a pod: regular containers together, then sidecars from last to first, then its
/// sandboxes.
pub async fn pod(
    context: &Context,
    pod: &Arc<Pod>,
    runtime: &RuntimePod,
    grace_seconds: i64,
) -> Result<(), Error> {
    let spec = pod::spec(pod);
    let began = Instant::now();
    let running = || runtime.containers.iter().filter(|c| is_running(c));
    let sidecar_order = |name: &str| {
        spec.init_containers.iter().flatten().filter(|c| pod::is_sidecar(c)).position(|c| c.name == name)
    };
    let first = running().filter(|c| sidecar_order(container_name(c)).is_none()).map(|c| {
        let name = container_name(c);
        let target = target(context, pod, runtime, name, &c.id);
        let message = format!("Stopping container {name}");
        async move { container(context, pod, &target, &message, grace_seconds).await }
    });
    let mut outcome =
        futures::future::join_all(first).await.into_iter().collect::<Result<Vec<()>, Error>>().map(drop);
    let mut sidecars: Vec<_> =
        running().filter_map(|c| Some((sidecar_order(container_name(c))?, c))).collect();
    sidecars.sort_by_key(|(order, _)| std::cmp::Reverse(*order));
    for (_, sidecar) in sidecars {
        let spent = i64::try_from(began.elapsed().as_secs()).unwrap_or(i64::MAX);
        let left = (grace_seconds - spent).max(MIN_GRACE_SECONDS.min(grace_seconds));
        let name = container_name(sidecar);
        let target = target(context, pod, runtime, name, &sidecar.id);
        let killed = container(context, pod, &target, &format!("Stopping container {name}"), left).await;
        outcome = outcome.and(killed);
    }
    for sandbox in runtime.sandboxes.iter().filter(|s| is_ready(s)) {
        match context.cri.stop_pod_sandbox(&sandbox.id).await {
            Err(error) if !error.is_not_found() => {
                warn!(pod = %pod::display(pod), %error, "cannot stop the sandbox");
                outcome = outcome.and(Err(error));
            }
            _ => {}
        }
    }
    outcome
}

/// Removes every container and sandbox of a pod; to be called when none of them runs.
pub async fn remove_all(context: &Context, runtime: &RuntimePod) -> Result<(), Error> {
    for container in &runtime.containers {
        ignore_missing(context.cri.remove_container(&container.id).await)?;
    }
    for sandbox in &runtime.sandboxes {
        // A sandbox that is not ready may still hold its network, and stopping a sandbox twice is allowed.
        ignore_missing(context.cri.stop_pod_sandbox(&sandbox.id).await)?;
        ignore_missing(context.cri.remove_pod_sandbox(&sandbox.id).await)?;
    }
    Ok(())
}

/// Treats a "not found" error of the runtime as success.
pub(super) fn ignore_missing(outcome: Result<(), Error>) -> Result<(), Error> {
    match outcome {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}
