//! The masters as the balancer sees them: who is alive, whose turn it is, and what to do with the
//! connections of one that died.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{BalancerConfig, Probe, ProbeError};

#[derive(Debug)]
struct Member {
    healthy: bool,
    /// Cancelled to reset the connections opened while it was in place.
    alive: CancellationToken,
    /// Ends the probing.
    probing: CancellationToken,
    /// Asks for a probe right now.
    suspect: Arc<Notify>,
}

/// Shared list of masters.
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    list: Arc<Mutex<BTreeMap<SocketAddr, Member>>>,
    turn: Arc<AtomicUsize>,
}

impl Members {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Member>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn health(&self) -> Vec<(SocketAddr, bool)> {
        self.lock().iter().map(|(address, member)| (*address, member.healthy)).collect()
    }

    /// All masters in the order in which a new connection tries them.
    pub(super) fn in_turn(&self) -> Vec<(SocketAddr, CancellationToken)> {
        let list = self.lock();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let pick = |healthy: bool| {
            let of_kind: Vec<_> = list
                .iter()
                .filter(|(_, member)| member.healthy == healthy)
                .map(|(address, member)| (*address, member.alive.clone()))
                .collect();
            let start = if of_kind.is_empty() { 0 } else { turn % of_kind.len() };
            of_kind.iter().cycle().skip(start).take(of_kind.len()).cloned().collect::<Vec<_>>()
        };
        [pick(true), pick(false)].concat()
    }

    /// A connection to it failed: probe it now instead of at the next interval.
    pub(super) fn suspect(&self, address: SocketAddr) {
        if let Some(member) = self.lock().get(&address) {
            member.suspect.notify_one();
        }
    }

    fn set_health(&self, address: SocketAddr, healthy: bool) {
        let mut list = self.lock();
        let Some(member) = list.get_mut(&address) else { return };
        if member.healthy != healthy {
            member.healthy = healthy;
            tracing::info!(%address, healthy, "master health changed");
        }
        // Without another master a reset only costs the clients what might still work.
        if list.values().any(|member| member.healthy) {
            for member in list.values_mut().filter(|member| !member.healthy) {
                std::mem::take(&mut member.alive).cancel();
            }
        }
    }

    /// Makes the list `wanted`; returns the members to probe from now on.
    fn update(&self, wanted: &[SocketAddr]) -> Vec<(SocketAddr, CancellationToken, Arc<Notify>)> {
        let mut list = self.lock();
        list.retain(|address, member| {
            let keep = wanted.contains(address);
            if !keep {
                member.probing.cancel();
                member.alive.cancel();
            }
            keep
        });
        let mut new = Vec::new();
        for address in wanted {
            if list.contains_key(address) {
                continue;
            }
            // Good until proven otherwise: the first connections must not wait for the first probe.
            let member = Member {
                healthy: true,
                alive: CancellationToken::new(),
                probing: CancellationToken::new(),
                suspect: Arc::default(),
            };
            new.push((*address, member.probing.clone(), member.suspect.clone()));
            list.insert(*address, member);
        }
        new
    }
}

/// Keeps the list of masters and their health up to date until shutdown.
pub(super) async fn follow(
    members: Members,
    config: BalancerConfig,
    mut masters: watch::Receiver<Vec<SocketAddr>>,
    probe: Arc<dyn Probe>,
    shutdown: CancellationToken,
) {
    loop {
        let wanted = masters.borrow_and_update().clone();
        if !wanted.is_empty() {
            for (address, probing, suspect) in members.update(&wanted) {
                let watching = watch_one(members.clone(), config, address, probe.clone(), suspect);
                let shutdown = shutdown.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        biased;
                        () = shutdown.cancelled() => {}
                        () = probing.cancelled() => {}
                        () = watching => {}
                    }
                });
            }
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            changed = masters.changed() => if changed.is_err() {
                // Nobody names masters any more: go on with those that are known.
                return shutdown.cancelled().await;
            },
        }
    }
}

async fn watch_one(
    members: Members,
    config: BalancerConfig,
    address: SocketAddr,
    probe: Arc<dyn Probe>,
    suspect: Arc<Notify>,
) {
    let mut failures: u32 = 0;
    loop {
        let outcome = timeout(config.probe_timeout, probe.probe(address)).await;
        match outcome.unwrap_or(Err(ProbeError::Deadline)) {
            Ok(()) => {
                failures = 0;
                members.set_health(address, true);
            }
            Err(error) => {
                let weight = if matches!(error, ProbeError::Refused(_)) { config.failures } else { 1 };
                failures = failures.saturating_add(weight);
                tracing::trace!(%address, %error, failures, "probe of a master failed");
                if failures >= config.failures {
                    members.set_health(address, false);
                }
            }
        }
        if (1..config.failures).contains(&failures) {
            // One bad answer may be chance: make sure at once, over a new connection.
            continue;
        }
        tokio::select! {
            biased;
            () = suspect.notified() => {}
            () = sleep(config.probe_interval) => {}
        }
    }
}
