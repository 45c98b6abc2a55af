//! Runs one probe of one container: waits for the initial delay and the startup probe, probes each period,
//! and reports a result once its threshold is reached.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerPort, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::verdict::Thresholds;
use super::{ProbeKind, ProbeTarget, Probes, exec, http, tcp};
use crate::clock;

/// Waits between the first attempts of a readiness or startup probe that has not succeeded yet: a server
/// needs a moment to listen, and waiting a whole period would delay every rollout. These attempts leave no
/// event when they fail.
const EAGER_MILLIS: [u64; 5] = [50, 100, 200, 400, 800];

/// Task that runs one probe of one container.
pub struct Worker {
    pub probes: Probes,
    pub target: ProbeTarget,
    pub kind: ProbeKind,
    pub probe: Probe,
    pub started: watch::Receiver<bool>,
    pub stop: CancellationToken,
}

/// Result of one attempt of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// The container is healthy.
    Healthy,
    /// The container is healthy, but the probe returned a warning.
    Warning(String),
    /// The container is unhealthy, with the reason.
    Failed(String),
}

impl Worker {
    /// Probes until stopped, or until a liveness or startup probe has failed or a startup probe has passed.
    pub async fn run(mut self) {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.probe_on() => {}
        }
    }

    async fn probe_on(&mut self) {
        if self.kind != ProbeKind::Startup && self.started.wait_for(|started| *started).await.is_err() {
            return;
        }
        let seconds =
            |value: Option<i32>, default: u64| value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default);
        let initial = Duration::from_secs(seconds(self.probe.initial_delay_seconds, 0));
        let age = Duration::from_nanos((clock::now_nanos() - self.target.started_at).max(0).unsigned_abs());
        tokio::time::sleep(initial.saturating_sub(age)).await;
        let mut thresholds = Thresholds::new(self.probe.success_threshold, self.probe.failure_threshold);
        let known_ready = self.kind == ProbeKind::Readiness && self.target.known.readiness == Some(true);
        if self.kind != ProbeKind::Liveness
            && !known_ready
            && thresholds.success() == 1
            && self.probe_eagerly(&mut thresholds).await
        {
            return;
        }
        let period = Duration::from_secs(seconds(self.probe.period_seconds, 10).max(1));
        let mut ticks = tokio::time::interval_at(Instant::now(), period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let healthy = self.attempt_with_events().await;
            let Some(healthy) = thresholds.observe(healthy) else { continue };
            self.probes.report(&self.target, self.kind, healthy);
            // A liveness or startup probe that failed is done (the container is stopped), as is a startup
            // probe that passed.
            if (self.kind != ProbeKind::Readiness && !healthy) || (self.kind == ProbeKind::Startup && healthy)
            {
                return;
            }
        }
    }

    /// Attempts the probe at short intervals until the first success. Returns whether the probe is finished.
    async fn probe_eagerly(&self, thresholds: &mut Thresholds) -> bool {
        if self.probe.exec.is_some() {
            // Commands cost the pod CPU time: exec probes run only once a period.
            return false;
        }
        for millis in EAGER_MILLIS {
            if matches!(self.attempt().await, ProbeOutcome::Healthy | ProbeOutcome::Warning(_)) {
                thresholds.observe(true);
                self.probes.report(&self.target, self.kind, true);
                if self.kind == ProbeKind::Startup {
                    return true;
                }
                let period = u64::try_from(self.probe.period_seconds.unwrap_or(10)).unwrap_or(10).max(1);
                tokio::time::sleep(Duration::from_secs(period)).await;
                return false;
            }
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        false
    }

    async fn attempt_with_events(&self) -> bool {
        let path = crate::events::container_path(&self.target.pod, &self.target.container.name);
        let kind = self.kind.as_str();
        match self.attempt().await {
            ProbeOutcome::Healthy => true,
            ProbeOutcome::Warning(message) => {
                let text = format!("{kind} probe warning: {message}");
                self.probes.events.pod_warning(&self.target.pod, Some(&path), "ProbeWarning", text);
                true
            }
            ProbeOutcome::Failed(message) => {
                let text = format!("{kind} probe failed: {message}");
                self.probes.events.pod_warning(&self.target.pod, Some(&path), "Unhealthy", text);
                false
            }
        }
    }

    async fn attempt(&self) -> ProbeOutcome {
        let timeout = u64::try_from(self.probe.timeout_seconds.unwrap_or(1)).unwrap_or(1).max(1);
        let timeout = Duration::from_secs(timeout);
        if let Some(action) = &self.probe.exec {
            let command = action.command.clone().unwrap_or_default();
            return exec::attempt(&self.probes.cri, &self.target.id, &command, timeout).await;
        }
        if let Some(action) = &self.probe.http_get {
            let Some(port) = resolve_port(&action.port, self.target.container.ports.as_deref()) else {
                return ProbeOutcome::Failed(format!("couldn't find port: {:?}", action.port));
            };
            return http::attempt(action, &self.target.ip, port, timeout).await;
        }
        if let Some(action) = &self.probe.tcp_socket {
            let Some(port) = resolve_port(&action.port, self.target.container.ports.as_deref()) else {
                return ProbeOutcome::Failed(format!("couldn't find port: {:?}", action.port));
            };
            let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&self.target.ip);
            return tcp::attempt(host, port, timeout).await;
        }
        if let Some(action) = &self.probe.grpc {
            let port = u16::try_from(action.port).unwrap_or(0);
            return super::tcp::grpc(
                &self.target.ip,
                port,
                action.service.as_deref().unwrap_or_default(),
                timeout,
            )
            .await;
        }
        ProbeOutcome::Failed(format!("missing probe handler for {}", self.target.container.name))
    }
}

/// Resolves a port given by number or by its name among the container's ports; `None` if there is no such
/// port.
pub fn resolve_port(port: &IntOrString, ports: Option<&[ContainerPort]>) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            match ports.unwrap_or_default().iter().find(|p| p.name.as_ref() == Some(name)) {
                Some(port) => port.container_port,
                None => name.parse().ok()?,
            }
        }
    };
    u16::try_from(number).ok().filter(|port| *port != 0)
}
