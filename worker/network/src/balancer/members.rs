//! The masters as the balancer sees them: who can serve, whose turn it is, and whose connections are
//! reset. `watcher` finds out; `mod.rs` asks for a master for each new connection.
//!
//! Late is not dead: a master that answers slowly gets no new connections while another one is ready,
//! and keeps those it has. Its connections are reset only when it is [`MasterState::Dead`] or says itself
//! that it is not to be used, and only while another master is ready.

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

use super::{BalancerConfig, Probe, Readiness, traffic::Traffic, watcher::Watcher};

/// What is known of a master, best first: the order in which masters get new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum MasterState {
    /// It answered in time that it is ready; also before the first answer.
    Ready,
    /// It has not answered, or not in time.
    Late,
    /// It answered that it is not ready.
    Unready,
    /// Its connections are refused, its host has not answered for long, or it is late and a ready master
    /// calls it silent.
    Dead,
}

#[derive(Debug)]
struct Member {
    /// What its own probes say.
    state: MasterState,
    /// Masters that this one called silent in its last answer.
    silent: Vec<SocketAddr>,
    /// Cancelled to reset the connections opened while it was in place.
    alive: CancellationToken,
    /// Ends the probing.
    probing: CancellationToken,
    /// Asks for a probe right now.
    suspect: Arc<Notify>,
    traffic: Arc<Traffic>,
}

/// A master that a new connection may try.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// `HOST:PORT` of its API server.
    pub(super) address: SocketAddr,
    /// Cancelled when the connections to it are to be reset.
    pub(super) alive: CancellationToken,
    /// Where what the connection carries is noted.
    pub(super) traffic: Arc<Traffic>,
}

/// Shared list of masters.
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    list: Arc<Mutex<BTreeMap<SocketAddr, Member>>>,
    turn: Arc<AtomicUsize>,
}

/// Whether a ready master other than `address` calls it silent.
fn is_called_silent(list: &BTreeMap<SocketAddr, Member>, address: SocketAddr) -> bool {
    list.iter().any(|(other, member)| {
        *other != address && member.state == MasterState::Ready && member.silent.contains(&address)
    })
}

/// The state of a master, its own probes and the others' failure detector taken together.
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

    /// All masters with whether each is ready.
    pub(super) fn health(&self) -> Vec<(SocketAddr, bool)> {
        self.lock().iter().map(|(address, member)| (*address, member.state == MasterState::Ready)).collect()
    }

    /// All masters in the order in which a new connection tries them: by state, and in turn among those
    /// of one state.
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

    /// A connection to it failed: probe it now instead of at the next interval.
    pub(super) fn suspect(&self, address: SocketAddr) {
        if let Some(member) = self.lock().get(&address) {
            member.suspect.notify_one();
        }
    }

    /// Has every master but `address` probed now: one of them may know that it is silent.
    pub(super) fn ask_others_about(&self, address: SocketAddr) {
        for (_, member) in self.lock().iter().filter(|(other, _)| **other != address) {
            member.suspect.notify_one();
        }
    }

    /// Takes what a ready master answered.
    pub(super) fn set_ready(&self, address: SocketAddr, readiness: Readiness) {
        self.set(address, MasterState::Ready, readiness.silent);
    }

    /// Takes what was found about a master that is not ready.
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
        // Without another master a reset only costs the clients what might still work.
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

    /// Makes the list `wanted`; returns the watchers of the members that are new.
    fn update(&self, wanted: &[SocketAddr], config: BalancerConfig, probe: &Arc<dyn Probe>) -> Vec<Watcher> {
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
                state: MasterState::Ready,
                silent: Vec::new(),
                alive: CancellationToken::new(),
                probing: CancellationToken::new(),
                suspect: Arc::default(),
                traffic: Arc::default(),
            };
            new.push(Watcher {
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
    probe: Arc<dyn Probe>,
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
                // Nobody names masters any more: go on with those that are known.
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
        let probe: Arc<dyn Probe> = Arc::new(TcpProbe);
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
        // What calls it silent must be ready itself.
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
