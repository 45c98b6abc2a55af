//! Probes one master as long as it is in the list, and records its state in `members`. Probes are rare while
//! the master is healthy: the end of the kept connection, a client's failed connection and unanswered traffic
//! each cause a probe at once.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    BalancerConfig, MasterProbe, ProbeError, Readiness,
    health::connect,
    members::{MasterState, Members},
    traffic::Traffic,
};

/// Shortest and longest pause between two probes of a master that is not ready.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Time without an answer after which a probe is repeated over a new connection.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The watcher of one master.
pub(super) struct MasterWatcher {
    pub(super) members: Members,
    pub(super) config: BalancerConfig,
    pub(super) address: SocketAddr,
    pub(super) probe: Arc<dyn MasterProbe>,
    /// Notified to cause a probe at once.
    pub(super) suspect: Arc<Notify>,
    pub(super) traffic: Arc<Traffic>,
    /// Cancelled when the master is removed from the list.
    pub(super) stop: CancellationToken,
}

/// Results of the last probes that the next one depends on.
#[derive(Default)]
struct ProbeHistory {
    /// Number of consecutive probes that did not find the master ready.
    failures: u32,
    /// Time since when the host's kernel has not answered; `None` if it answered last time.
    unreachable: Option<Instant>,
    /// Pause before the next probe of a master that is not ready.
    pause: Duration,
}

impl MasterWatcher {
    /// Runs until `shutdown` is cancelled or the master is removed from the list.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = self.stop.cancelled() => {}
            () = self.watch() => {}
        }
    }

    async fn watch(&self) {
        let mut findings = ProbeHistory::default();
        loop {
            let asked = Instant::now();
            let outcome = self.ask(&mut findings).await;
            if self.judge(outcome, &mut findings) {
                findings = ProbeHistory::default();
                self.until_the_next_probe().await;
                // At least the shortest pause lies between two probes, however many notifications there are.
                tokio::time::sleep_until(asked + RETRY.0).await;
            } else if !(1..self.config.failures).contains(&findings.failures) {
                findings.pause = (findings.pause * 3 / 2).clamp(RETRY.0, RETRY.1);
                let waited = timeout(findings.pause, self.suspect.notified()).await;
                tracing::trace!(address = %self.address, asked = waited.is_ok(), "probing a master again");
            }
            // Otherwise probe again at once, because a single bad answer may be chance.
        }
    }

    /// Records the result of a probe; returns whether the master is ready.
    fn judge(&self, outcome: Result<Readiness, ProbeError>, findings: &mut ProbeHistory) -> bool {
        let error = match outcome {
            Ok(readiness) => {
                self.members.set_ready(self.address, readiness);
                return true;
            }
            Err(error) => error,
        };
        tracing::trace!(address = %self.address, %error, "probe of a master failed");
        let state = match error {
            ProbeError::Refused(_) => MasterState::Dead,
            ProbeError::Unreachable(_) => {
                let since = *findings.unreachable.get_or_insert_with(Instant::now);
                if since.elapsed() >= self.config.gone_after { MasterState::Dead } else { MasterState::Late }
            }
            ProbeError::Failed(_) => MasterState::Late,
            ProbeError::NotReady(_) => MasterState::Unready,
        };
        if !matches!(error, ProbeError::Unreachable(_)) {
            findings.unreachable = None;
        }
        findings.failures = match error {
            ProbeError::NotReady(_) | ProbeError::Failed(_) => findings.failures.saturating_add(1),
            ProbeError::Refused(_) | ProbeError::Unreachable(_) => self.config.failures,
        };
        if findings.failures >= self.config.failures {
            self.members.set_state(self.address, state);
        }
        false
    }

    /// Sends a probe and waits for the answer. A late answer is waited for, as further probes would make a
    /// busy master even busier. Meanwhile tests by connecting whether process and host still exist, and has
    /// the other masters probed, which may report this one as silent.
    async fn ask(&self, findings: &mut ProbeHistory) -> Result<Readiness, ProbeError> {
        let answer = self.probe.probe(self.address, self.config.connect_timeout);
        let mut answer = std::pin::pin!(answer);
        if let Ok(answered) = timeout(self.config.probe_timeout, &mut answer).await {
            return answered;
        }
        self.members.set_state(self.address, MasterState::Late);
        let asked = Instant::now();
        let mut pause = RETRY.0;
        while asked.elapsed() < ANSWER_MAX {
            self.members.ask_others_about(self.address);
            let reachable = async {
                sleep(pause).await;
                connect(self.address, self.config.connect_timeout).await
            };
            tokio::select! {
                biased;
                answered = &mut answer => return answered,
                connected = reachable => match connected.map_err(ProbeError::from) {
                    Ok(_closed) => findings.unreachable = None,
                    Err(ProbeError::Unreachable(error)) => {
                        let since = *findings.unreachable.get_or_insert_with(Instant::now);
                        if since.elapsed() >= self.config.gone_after {
                            return Err(ProbeError::Unreachable(error));
                        }
                    }
                    Err(error) => return Err(error),
                },
            }
            pause = (pause * 3 / 2).min(RETRY.1);
        }
        Err(ProbeError::Failed(format!("no answer within {ANSWER_MAX:?}")))
    }

    /// Waits until the probe interval has passed or there is a reason to probe the master earlier.
    async fn until_the_next_probe(&self) {
        let stalled = async {
            loop {
                sleep(self.config.probe_timeout / 2).await;
                if self.traffic.is_stalled(self.config.probe_timeout) {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = self.suspect.notified() => {}
            () = self.probe.lost(self.address) => {}
            () = stalled => {}
            () = sleep(self.config.probe_interval) => {}
        }
    }
}
