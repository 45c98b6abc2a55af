//! The balancer's list of masters: each one's state, the order for new connections, and which connections to
//! reset. `watcher` sets the states; `mod.rs` asks for the masters to try for each new connection.
//!
//! A late master is not treated as dead: it gets no new connections while another master is ready, and keeps
//! those it has. Its connections are reset only when it is [`MasterState::Dead`] or answers that it is not
//! ready, and only while another master is ready.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{BalancerConfig, MasterProbe, Readiness, traffic::Traffic, watcher::MasterWatcher};

/// State of a master, best first: the order in which masters get new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum MasterState {
    /// The master answered in time that it is ready; also the state before the first answer.
    Ready,
    /// The master has not answered, or its answer took longer than the probe timeout.
    Late,
    /// The master answered that it is not ready.
    Unready,
    /// The master's connections are refused, its host has not answered for long, or the master is late
    /// and a ready master reports it silent.
    Dead,
}

#[derive(Debug)]
struct Member {
    /// State according to this balancer's own probes.
    state: MasterState,
    /// Masters that this one reported silent in its last answer.
    silent: Vec<SocketAddr>,
    /// Cancelled to reset the connections opened with this token; a new token then replaces it.
    alive: CancellationToken,
    /// Cancelled to end the probing of this master.
    probing: CancellationToken,
    /// Wakes the watcher to probe at once.
    suspect: Arc<Notify>,
    traffic: Arc<Traffic>,
}

/// A master that a new connection may try.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// `HOST:PORT` of its API server.
    pub(super) address: SocketAddr,
    /// Cancelled to reset the connections to this master.
    pub(super) alive: CancellationToken,
    /// Record of when the connections sent and received bytes.
    pub(super) traffic: Arc<Traffic>,
}

/// The list of masters, shared by balancer and watchers.
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    list: Arc<Mutex<BTreeMap<SocketAddr, Member>>>,
    turn: Arc<AtomicUsize>,
}

/// Returns whether a ready master reports the master at `address` silent.
fn is_called_silent(list: &BTreeMap<SocketAddr, Member>, address: SocketAddr) -> bool {
    list.iter().any(|(other, member)| {
        *other != address && member.state == MasterState::Ready && member.silent.contains(&address)
    })
}

/// Returns a master's state from its own probes and the reports of the other masters together.
fn state_of(list: &BTreeMap<SocketAddr, Member>, address: SocketAddr, member: &Member) -> MasterState {
    match member.state {
        MasterState::Late if is_called_silent(list, address) => MasterState::Dead,
        state => state,
    }
}

impl Members {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Member>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns all masters and whether each is ready.
    pub(super) fn health(&self) -> Vec<(SocketAddr, bool)> {
        self.lock().iter().map(|(address, member)| (*address, member.state == MasterState::Ready)).collect()
    }

    /// Returns all masters in the order in which a new connection tries them: by state, and round-robin among
    /// masters in the same state.
    pub(super) fn in_turn(&self) -> Vec<Candidate> {
        let list = self.lock();
        let mut all: Vec<_> = list
            .iter()
            .map(|(address, member)| {
                let candidate = Candidate {
                    address: *address,
                    alive: member.alive.clone(),
                    traffic: member.traffic.clone(),
                };
                (state_of(&list, *address, member), candidate)
            })
            .collect();
        all.sort_by_key(|(state, _)| *state);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        for group in all.chunk_by_mut(|(one, _), (other, _)| one == other) {
            let start = turn % group.len();
            group.rotate_left(start);
        }
        all.into_iter().map(|(_, candidate)| candidate).collect()
    }

    /// Probes the master at once instead of at the next interval, because a connection to it failed.
    pub(super) fn suspect(&self, address: SocketAddr) {
        if let Some(member) = self.lock().get(&address) {
            member.suspect.notify_one();
        }
    }

    /// Probes every master but `address` at once: one of them may report `address` as silent.
    pub(super) fn ask_others_about(&self, address: SocketAddr) {
        for (_, member) in self.lock().iter().filter(|(other, _)| **other != address) {
            member.suspect.notify_one();
        }
    }

    /// Records the answer of a ready master.
    pub(super) fn set_ready(&self, address: SocketAddr, readiness: Readiness) {
        self.set(address, MasterState::Ready, readiness.silent);
    }

    /// Records the state of a master that is not ready.
    pub(super) fn set_state(&self, address: SocketAddr, state: MasterState) {
        self.set(address, state, Vec::new());
    }

    fn set(&self, address: SocketAddr, state: MasterState, silent: Vec<SocketAddr>) {
        let mut list = self.lock();
        let Some(member) = list.get_mut(&address) else { return };
        member.silent = silent;
        if member.state != state {
            member.state = state;
            tracing::info!(%address, ?state, "master health changed");
        }
        // While no master is ready, a reset would only cost clients connections that may still work.
        if !list.values().any(|member| member.state == MasterState::Ready) {
            return;
        }
        let lost: Vec<SocketAddr> = list
            .iter()
            .filter(|(address, member)| state_of(&list, **address, member) >= MasterState::Unready)
            .map(|(address, _)| *address)
            .collect();
        for address in lost {
            if let Some(member) = list.get_mut(&address) {
                std::mem::take(&mut member.alive).cancel();
            }
        }
    }

    /// Replaces the list by `wanted`; returns the watchers of the new members.
    fn update(
        &self,
        wanted: &[SocketAddr],
        config: BalancerConfig,
        probe: &Arc<dyn MasterProbe>,
    ) -> Vec<MasterWatcher> {
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
            // A new master counts as ready, so that the first connections need not wait for the first probe.
            let member = Member {
                state: MasterState::Ready,
                silent: Vec::new(),
                alive: CancellationToken::new(),
                probing: CancellationToken::new(),
                suspect: Arc::default(),
                traffic: Arc::default(),
            };
            new.push(MasterWatcher {
                members: self.clone(),
                config,
                address: *address,
                probe: probe.clone(),
                suspect: member.suspect.clone(),
                traffic: member.traffic.clone(),
                stop: member.probing.clone(),
            });
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
    probe: Arc<dyn MasterProbe>,
    shutdown: CancellationToken,
) {
    loop {
        let wanted = masters.borrow_and_update().clone();
        if !wanted.is_empty() {
            for watcher in members.update(&wanted, config, &probe) {
                tokio::spawn(watcher.run(shutdown.clone()));
            }
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            changed = masters.changed() => if changed.is_err() {
                // The sender of the list is gone: keep the masters that are known.
                return shutdown.cancelled().await;
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::TcpProbe;

    const CALM: u16 = 1;
    const LATE: u16 = 2;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn two_masters() -> Members {
        let members = Members::default();
        let probe: Arc<dyn MasterProbe> = Arc::new(TcpProbe);
        members.update(&[address(CALM), address(LATE)], BalancerConfig::default(), &probe);
        members
    }

    fn connection_to(members: &Members, port: u16) -> CancellationToken {
        let candidate = members.in_turn().into_iter().find(|found| found.address == address(port));
        candidate.map(|found| found.alive).expect("a known master")
    }

    fn first(members: &Members) -> Vec<SocketAddr> {
        (0..4).filter_map(|_| members.in_turn().first().map(|found| found.address)).collect()
    }

    #[test]
    fn a_late_master_keeps_its_connections_and_gets_no_new_ones() {
        let members = two_masters();
        let connection = connection_to(&members, LATE);
        members.set_state(address(LATE), MasterState::Late);
        members.set_ready(address(CALM), Readiness::default());
        assert!(!connection.is_cancelled());
        assert_eq!(first(&members), [address(CALM); 4]);
    }

    #[test]
    fn a_late_master_that_a_ready_one_calls_silent_is_dead() {
        let members = two_masters();
        let connection = connection_to(&members, LATE);
        let silent = || Readiness { silent: vec![address(LATE)] };
        members.set_ready(address(CALM), silent());
        assert!(!connection.is_cancelled(), "its own answers count for more");
        members.set_state(address(LATE), MasterState::Late);
        assert!(connection.is_cancelled());
        // Only the report of a master that is ready itself counts.
        members.set_ready(address(LATE), Readiness::default());
        let connection = connection_to(&members, LATE);
        members.set_state(address(CALM), MasterState::Late);
        members.set_state(address(LATE), MasterState::Late);
        assert!(!connection.is_cancelled());
    }

    #[test]
    fn only_the_last_answer_of_a_master_says_who_is_silent() {
        let members = two_masters();
        members.set_ready(address(CALM), Readiness { silent: vec![address(LATE)] });
        members.set_ready(address(CALM), Readiness::default());
        let connection = connection_to(&members, LATE);
        members.set_state(address(LATE), MasterState::Late);
        assert!(!connection.is_cancelled());
    }

    #[test]
    fn connections_of_a_dead_master_stay_while_no_other_is_ready() {
        let members = two_masters();
        let connection = connection_to(&members, LATE);
        members.set_state(address(CALM), MasterState::Late);
        members.set_state(address(LATE), MasterState::Dead);
        assert!(!connection.is_cancelled());
        members.set_ready(address(CALM), Readiness::default());
        assert!(connection.is_cancelled());
    }
}
