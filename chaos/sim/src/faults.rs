//! What goes wrong: a schedule drawn from the seed, and the hand that carries it
//! out between two steps of the simulation. A fault counts when it really
//! happened: the link was cut, the process was there to be killed, the disk
//! refused a call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use turmoil::Sim;

use crate::machine::{Machine, Order};
use crate::observer::Observer;
use crate::seams::disk::Failure;
use crate::seams::random::generator;

/// Latency of a slow link.
const SLOW: Duration = Duration::from_millis(300);
/// Latency of links otherwise; `run.rs` builds the network with it.
pub const LATENCY: Duration = Duration::from_millis(2);
/// Share of messages a bad link loses.
const LOSS: f64 = 0.05;

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Two masters do not hear each other.
    Cut,
    /// One master does not hear another, which hears it.
    CutOneWay,
    /// The leader and the others do not hear each other.
    LeaderAlone,
    /// A minority and the rest do not hear each other.
    Minority,
    /// Each master hears only its neighbours in a ring.
    Ring,
    /// A link is slow.
    Slow,
    /// A link loses messages.
    Lose,
    /// A link keeps messages back and delivers them later, all at once.
    Hold,
    /// SIGKILL of a master, which starts again later.
    Kill,
    /// SIGKILL of the leader.
    KillLeader,
    /// SIGKILL of all masters.
    KillAll,
    /// A machine loses power.
    PowerLoss,
    /// All machines lose power.
    PowerLossAll,
    /// Syncs fail with EIO.
    DiskSync,
    /// Writes fail with ENOSPC.
    DiskFull,
    /// A wall clock is wrong for a while.
    Clock,
    /// The leader is asked to hand over.
    Transfer,
}

/// All kinds, with how often each is drawn.
const KINDS: [(Kind, u32); 17] = [
    (Kind::Cut, 6),
    (Kind::CutOneWay, 6),
    (Kind::LeaderAlone, 8),
    (Kind::Minority, 6),
    (Kind::Ring, 3),
    (Kind::Slow, 4),
    (Kind::Lose, 6),
    (Kind::Hold, 4),
    (Kind::Kill, 8),
    (Kind::KillLeader, 8),
    (Kind::KillAll, 2),
    (Kind::PowerLoss, 8),
    (Kind::PowerLossAll, 4),
    (Kind::DiskSync, 4),
    (Kind::DiskFull, 3),
    (Kind::Clock, 4),
    (Kind::Transfer, 6),
];

impl Kind {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::CutOneWay => "cut-one-way",
            Self::LeaderAlone => "cut-leader-alone",
            Self::Minority => "cut-minority",
            Self::Ring => "cut-ring",
            Self::Slow => "slow",
            Self::Lose => "lose",
            Self::Hold => "hold",
            Self::Kill => "kill",
            Self::KillLeader => "kill-leader",
            Self::KillAll => "kill-all",
            Self::PowerLoss => "powerloss",
            Self::PowerLossAll => "powerloss-all",
            Self::DiskSync => "disk-eio",
            Self::DiskFull => "disk-enospc",
            Self::Clock => "clock",
            Self::Transfer => "member-transfer-leader",
        }
    }
}

/// What ends a fault.
enum Undo {
    Repair(usize, usize),
    Latency(usize, usize),
    Loss(usize, usize),
    Release(usize, usize),
    Start(usize),
    Disk(usize, Kind, u64),
    Clock(usize),
}

/// The hand.
pub struct Chaos {
    machines: Vec<Arc<Machine>>,
    observer: Observer,
    random: StdRng,
    /// When the next fault begins, in simulated time.
    next: Duration,
    /// Faults under way, by their end.
    active: Vec<(Duration, Undo)>,
    /// Which machines run.
    up: Vec<bool>,
    /// How often each kind really happened.
    fired: BTreeMap<&'static str, u64>,
}

impl Chaos {
    /// Nothing is wrong yet; the first fault comes after `start`.
    pub fn new(machines: Vec<Arc<Machine>>, observer: Observer, seed: u64, start: Duration) -> Self {
        let up = vec![true; machines.len()];
        let random = generator(seed, 1);
        let (active, fired) = Default::default();
        Self { machines, observer, random, next: start, active, up, fired }
    }

    /// Begins and ends what is due at `now`.
    pub fn step(&mut self, sim: &mut Sim<'_>, now: Duration) {
        self.end_due(sim, now);
        if now < self.next {
            return;
        }
        let total: u32 = KINDS.iter().map(|(_, weight)| weight).sum();
        let mut draw = self.random.random_range(0..total);
        let kind = KINDS.iter().find(|(_, weight)| match draw.checked_sub(*weight) {
            Some(rest) => {
                draw = rest;
                false
            }
            None => true,
        });
        let Some((kind, _)) = kind else { return };
        let until = now + Duration::from_millis(self.random.random_range(200..6000));
        tracing::info!(target: "chaos", kind = kind.name(), until_ms = until.as_millis() as u64, "fault");
        if self.begin(sim, *kind, until) {
            *self.fired.entry(kind.name()).or_default() += 1;
        }
        self.next = now + Duration::from_millis(self.random.random_range(100..5000));
    }

    /// Ends everything that is wrong.
    pub fn heal(&mut self, sim: &mut Sim<'_>) {
        tracing::info!(target: "chaos", "everything heals");
        self.end_due(sim, Duration::MAX);
    }

    /// How often each kind of fault really happened.
    pub fn fired(&self) -> &BTreeMap<&'static str, u64> {
        &self.fired
    }

    fn end_due(&mut self, sim: &mut Sim<'_>, now: Duration) {
        let (due, rest) = std::mem::take(&mut self.active).into_iter().partition(|(end, _)| *end <= now);
        self.active = rest;
        for (_, undo) in due {
            self.undo(sim, undo);
        }
    }

    fn undo(&mut self, sim: &mut Sim<'_>, undo: Undo) {
        let ip = |index: usize| self.machines[index].ip;
        match undo {
            Undo::Repair(a, b) => sim.repair(ip(a), ip(b)),
            Undo::Latency(a, b) => sim.set_link_latency(ip(a), ip(b), LATENCY),
            Undo::Loss(a, b) => sim.set_link_fail_rate(ip(a), ip(b), 0.0),
            Undo::Release(a, b) => sim.release(ip(a), ip(b)),
            Undo::Start(index) => {
                if !self.up[index] {
                    sim.bounce(ip(index));
                    self.up[index] = true;
                }
            }
            Undo::Disk(index, kind, before) => {
                let disk = &self.machines[index].disk;
                disk.set_failure(None);
                if disk.failed() > before {
                    *self.fired.entry(kind.name()).or_default() += 1;
                }
            }
            Undo::Clock(index) => self.machines[index].clock.set_skew_ms(0),
        }
    }

    /// Begins a fault; false where there was nothing to do it to, or where its end will tell.
    fn begin(&mut self, sim: &mut Sim<'_>, kind: Kind, until: Duration) -> bool {
        let any = self.random.random_range(0..self.machines.len());
        match kind {
            Kind::Cut | Kind::CutOneWay | Kind::LeaderAlone | Kind::Minority | Kind::Ring => {
                self.cut(sim, kind, until)
            }
            Kind::Slow | Kind::Lose | Kind::Hold => self.disturb(sim, kind, until),
            Kind::Kill => self.stop(sim, any, until, false),
            Kind::KillLeader => {
                self.observer.leader().is_some_and(|leader| self.stop(sim, leader, until, false))
            }
            Kind::PowerLoss => self.stop(sim, any, until, true),
            Kind::KillAll | Kind::PowerLossAll => {
                let power = kind == Kind::PowerLossAll;
                let stopped = (0..self.machines.len()).filter(|index| self.stop(sim, *index, until, power));
                stopped.count() == self.machines.len()
            }
            Kind::DiskSync | Kind::DiskFull => {
                let disk = &self.machines[any].disk;
                let failure = if kind == Kind::DiskSync { Failure::SyncFails } else { Failure::Full };
                disk.set_failure(Some(failure));
                self.active.push((until, Undo::Disk(any, kind, disk.failed())));
                false
            }
            Kind::Clock => {
                self.machines[any].clock.set_skew_ms(self.random.random_range(-600_000..600_000));
                self.active.push((until, Undo::Clock(any)));
                true
            }
            Kind::Transfer => self.transfer(any),
        }
    }

    /// Two different machines.
    fn pair(&mut self) -> Option<(usize, usize)> {
        let mut all: Vec<usize> = (0..self.machines.len()).collect();
        all.shuffle(&mut self.random);
        Some((*all.first()?, *all.get(1)?))
    }

    fn cut(&mut self, sim: &mut Sim<'_>, kind: Kind, until: Duration) -> bool {
        let count = self.machines.len();
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(&mut self.random);
        let across = |size: usize| {
            let (few, many) = order.split_at(size);
            few.iter().flat_map(|a| many.iter().map(move |b| (*a, *b))).collect::<Vec<_>>()
        };
        let pairs: Vec<(usize, usize)> = match kind {
            Kind::LeaderAlone => match self.observer.leader() {
                Some(leader) => (0..count).filter(|other| *other != leader).map(|o| (leader, o)).collect(),
                None => Vec::new(),
            },
            Kind::Minority => across(count / 2),
            // Every second link of the full mesh goes, all but those of neighbours.
            Kind::Ring => (0..count)
                .flat_map(|a| (a + 1..count).map(move |b| (a, b)))
                .filter(|(a, b)| b - a != 1 && b - a != count - 1)
                .collect(),
            _ => self.pair().into_iter().collect(),
        };
        for (a, b) in &pairs {
            let (from, to) = (self.machines[*a].ip, self.machines[*b].ip);
            if kind == Kind::CutOneWay {
                sim.partition_oneway(from, to);
            } else {
                sim.partition(from, to);
            }
            self.active.push((until, Undo::Repair(*a, *b)));
        }
        !pairs.is_empty()
    }

    fn disturb(&mut self, sim: &mut Sim<'_>, kind: Kind, until: Duration) -> bool {
        let Some((a, b)) = self.pair() else { return false };
        let (from, to) = (self.machines[a].ip, self.machines[b].ip);
        let undo = match kind {
            Kind::Slow => {
                sim.set_link_latency(from, to, SLOW);
                Undo::Latency(a, b)
            }
            Kind::Lose => {
                sim.set_link_fail_rate(from, to, LOSS);
                Undo::Loss(a, b)
            }
            _ => {
                sim.hold(from, to);
                Undo::Release(a, b)
            }
        };
        self.active.push((until, undo));
        true
    }

    /// Takes a machine's process away, and with `power` what its disk had not synced.
    fn stop(&mut self, sim: &mut Sim<'_>, index: usize, until: Duration, power: bool) -> bool {
        if !self.up[index] {
            return false;
        }
        let machine = &self.machines[index];
        sim.crash(machine.ip);
        self.up[index] = false;
        if power {
            let lost = machine.disk.power_loss(&mut self.random);
            machine.home.power_loss();
            tracing::info!(target: "chaos", machine = machine.name, lost, "power lost");
        }
        self.active.push((until, Undo::Start(index)));
        true
    }

    fn transfer(&self, to: usize) -> bool {
        let masters = self.observer.masters();
        let target = masters.iter().find(|(index, _)| *index == to).map(|(_, master)| master.node_id());
        let (Some(target), Some(leader)) = (target, self.observer.leader()) else { return false };
        if leader == to {
            return false;
        }
        self.machines[leader].order(Order::TransferLeader(target))
    }
}
