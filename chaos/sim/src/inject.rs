//! Carries the schedule of an experiment out, between two steps of the
//! simulation. A fault counts when it really happened: a link was there to be
//! cut, a process to be killed, a call of the disk failed. What the simulation
//! cannot do counts as never fired, which makes the verdict unknown.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chaos_spec::experiment::Entry;
use chaos_spec::fault::{ClockChange, DiskKind, Fault, Member};
use chaos_spec::report::FaultRecord;
use chaos_spec::resolve::Link;
use chaos_spec::units::Offset;
use chaos_spec::{Group, NodeName, Target};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::machine::{Machine, Order};
use crate::seams::disk::Failure;
use crate::seams::random::generator;
use crate::world::{LATENCY, World};

/// What ends a fault.
enum Undo {
    Repair(Vec<Link>),
    Latency(Vec<Link>),
    Loss(Vec<Link>),
    Release(Vec<Link>),
    Start(Vec<NodeName>),
    /// With how many calls had failed before.
    Disk(NodeName, u64),
    Clock(NodeName),
}

/// The hand that does it.
pub struct Injector {
    schedule: VecDeque<(usize, Entry)>,
    /// When the schedule began, in simulated time.
    origin: Duration,
    duration: Duration,
    random: StdRng,
    /// Faults under way: when they end, and whose they are.
    active: Vec<(Duration, usize, Undo)>,
    /// How many faults hold each direction cut.
    cuts: BTreeMap<Link, u32>,
    down: BTreeSet<NodeName>,
    records: Vec<FaultRecord>,
}

impl Injector {
    /// Begins the schedule at `origin`.
    pub fn new(schedule: &[Entry], duration: Duration, seed: u64, origin: Duration) -> Self {
        let record = |entry: &Entry| FaultRecord {
            kind: entry.fault.kind(),
            what: entry.fault.to_string(),
            at: entry.at,
            ended: None,
            fired: 0,
            detect: None,
            elect: None,
            first_write: None,
            full_heal: None,
        };
        Self {
            records: schedule.iter().map(record).collect(),
            schedule: schedule.iter().cloned().enumerate().collect(),
            origin,
            duration,
            random: generator(seed, 2),
            active: Vec::new(),
            cuts: BTreeMap::new(),
            down: BTreeSet::new(),
        }
    }

    /// What became of each entry of the schedule.
    pub fn records(self) -> Vec<FaultRecord> {
        self.records
    }

    /// Begins and ends what is due.
    pub fn step(&mut self, world: &mut World<'_>) {
        let now = world.elapsed().saturating_sub(self.origin);
        self.end_due(world, now);
        while self.schedule.front().is_some_and(|(_, entry)| entry.at <= now) {
            let Some((index, entry)) = self.schedule.pop_front() else { return };
            // What is down already cannot be struck, but it can be replaced.
            let mut order = world.members();
            order.retain(|node| matches!(entry.fault, Fault::Member(_)) || !self.down.contains(node));
            order.shuffle(&mut self.random);
            let group = Group::new(order, world.leader());
            let fired = self.begin(world, &group, index, &entry);
            let record = &mut self.records[index];
            record.fired += fired;
            record.at = now;
            if entry.fault.is_instant() && fired > 0 {
                record.ended = Some(now);
            }
            tracing::info!(target: "chaos", what = record.what, fired, "fault");
        }
    }

    /// Ends everything that is wrong, and starts every node that is down.
    pub fn heal(&mut self, world: &mut World<'_>) {
        tracing::info!(target: "chaos", "everything heals");
        self.schedule.clear();
        self.end_due(world, Duration::MAX);
        let down = std::mem::take(&mut self.down);
        down.into_iter().for_each(|node| world.start(node));
    }

    fn end_due(&mut self, world: &mut World<'_>, now: Duration) {
        let (due, rest) = std::mem::take(&mut self.active).into_iter().partition(|(end, ..)| *end <= now);
        self.active = rest;
        for (end, index, undo) in due {
            self.undo(world, index, undo);
            self.records[index].ended = Some(end.min(world.elapsed().saturating_sub(self.origin)));
        }
    }

    fn undo(&mut self, world: &mut World<'_>, index: usize, undo: Undo) {
        match undo {
            Undo::Repair(links) => {
                for link in links {
                    let held = self.cuts.entry(link).or_insert(1);
                    *held -= 1;
                    if *held == 0 {
                        self.cuts.remove(&link);
                        world.on_link(link, |sim, from, to| sim.repair_oneway(from, to));
                    }
                }
            }
            Undo::Latency(links) => {
                links.iter().for_each(|l| world.on_link(*l, |sim, a, b| sim.set_link_latency(a, b, LATENCY)));
            }
            Undo::Loss(links) => {
                links.iter().for_each(|l| world.on_link(*l, |sim, a, b| sim.set_link_fail_rate(a, b, 0.0)));
            }
            Undo::Release(links) => {
                links.iter().for_each(|link| world.on_link(*link, |sim, a, b| sim.release(a, b)));
            }
            Undo::Start(nodes) => {
                for node in nodes {
                    if self.down.remove(&node) {
                        world.start(node);
                    }
                }
            }
            Undo::Disk(node, before) => {
                if let Some(machine) = world.machine(node) {
                    machine.disk.set_failure(None);
                    self.records[index].fired += machine.disk.failed() - before;
                }
            }
            Undo::Clock(node) => {
                if let Some(machine) = world.machine(node) {
                    machine.clock.set_skew_ms(0);
                }
            }
        }
    }

    /// Begins a fault and says how often it took effect so far.
    fn begin(&mut self, world: &mut World<'_>, group: &Group, index: usize, entry: &Entry) -> u64 {
        let end = entry.end(self.duration);
        match &entry.fault {
            Fault::Cut(cut) => {
                let links = group.cut(cut);
                for link in &links {
                    *self.cuts.entry(*link).or_default() += 1;
                    world.on_link(*link, |sim, from, to| sim.partition_oneway(from, to));
                }
                self.begun(end, index, links, Undo::Repair)
            }
            Fault::Slow(slow) if !slow.one_way => {
                let links = group.links(&slow.from, &slow.to, false);
                for link in &links {
                    world.on_link(*link, |sim, a, b| sim.set_link_latency(a, b, slow.latency));
                }
                self.begun(end, index, links, Undo::Latency)
            }
            Fault::Lose(lose) if !lose.one_way => {
                let links = group.links(&lose.from, &lose.to, false);
                for link in &links {
                    world.on_link(*link, |sim, a, b| sim.set_link_fail_rate(a, b, lose.percent.fraction()));
                }
                self.begun(end, index, links, Undo::Loss)
            }
            Fault::Hold(hold) if !hold.one_way => {
                let links = group.links(&hold.from, &hold.to, false);
                links.iter().for_each(|link| world.on_link(*link, |sim, a, b| sim.hold(a, b)));
                self.begun(end, index, links, Undo::Release)
            }
            Fault::Kill(strike) => self.stop(world, group.nodes(&strike.target), index, end, false),
            Fault::Powerloss(strike) => self.stop(world, group.nodes(&strike.target), index, end, true),
            Fault::Disk(disk) => self.disk(world, group.nodes(&disk.target), index, end, disk.kind),
            Fault::Clock(clock) => {
                let machines = Self::machines(world, group, &clock.target);
                for (node, machine) in &machines {
                    match clock.change {
                        ClockChange::Skew(offset) => {
                            machine.clock.set_skew_ms(millis(offset));
                            self.active.push((end, index, Undo::Clock(*node)));
                        }
                        ClockChange::Jump(offset) => machine.clock.jump_ms(millis(offset)),
                    }
                }
                machines.len() as u64
            }
            Fault::Member(member) => Self::member(world, group, member),
            // Not in this world: stopping without dying, slow disks, one-way delays, workers.
            Fault::Pause(_) | Fault::Worker(_) | Fault::Slow(_) | Fault::Lose(_) | Fault::Hold(_) => 0,
        }
    }

    fn begun(&mut self, end: Duration, index: usize, links: Vec<Link>, undo: fn(Vec<Link>) -> Undo) -> u64 {
        let count = links.len() as u64;
        self.active.push((end, index, undo(links)));
        count
    }

    fn machines(world: &World<'_>, group: &Group, target: &Target) -> Vec<(NodeName, Arc<Machine>)> {
        let nodes = group.nodes(target);
        nodes.into_iter().filter_map(|node| Some((node, world.machine(node)?))).collect()
    }

    /// Takes processes away, and with `power` what their disks had not synced.
    fn stop(
        &mut self,
        world: &mut World<'_>,
        nodes: Vec<NodeName>,
        index: usize,
        end: Duration,
        power: bool,
    ) -> u64 {
        let nodes: Vec<NodeName> = nodes.into_iter().filter(|node| self.down.insert(*node)).collect();
        for node in &nodes {
            world.stop(*node);
            let Some(machine) = world.machine(*node).filter(|_| power) else { continue };
            let lost = machine.disk.power_loss(&mut self.random);
            machine.home.power_loss();
            tracing::info!(target: "chaos", machine = machine.name, lost, "power lost");
        }
        let count = nodes.len() as u64;
        self.active.push((end, index, Undo::Start(nodes)));
        count
    }

    fn disk(
        &mut self,
        world: &World<'_>,
        nodes: Vec<NodeName>,
        index: usize,
        end: Duration,
        kind: DiskKind,
    ) -> u64 {
        let failure = match kind {
            DiskKind::Eio => Failure::SyncFails,
            DiskKind::Enospc => Failure::Full,
            // Not in this world yet.
            DiskKind::Bitflip | DiskKind::Truncate | DiskKind::SlowFsync { .. } => return 0,
        };
        for node in nodes {
            if let Some(machine) = world.machine(node) {
                machine.disk.set_failure(Some(failure));
                self.active.push((end, index, Undo::Disk(node, machine.disk.failed())));
            }
        }
        // Counted at its end, by the calls that failed.
        0
    }

    fn member(world: &mut World<'_>, group: &Group, member: &Member) -> u64 {
        let leader = world.leader();
        let order = |world: &World<'_>, order| {
            let machine = leader.and_then(|leader| world.machine(leader));
            u64::from(machine.is_some_and(|machine| machine.order(order)))
        };
        match member {
            Member::TransferLeader(target) => match group.nodes(target).first() {
                Some(to) if Some(*to) == leader => 1,
                Some(to) => world.node_id(*to).map_or(0, |id| order(world, Order::TransferLeader(id))),
                None => 0,
            },
            Member::Add(new) => u64::from(world.add(*new)),
            Member::Remove(target) => match group.nodes(target).first() {
                Some(old) => world.retire(*old),
                None => 0,
            },
            Member::Replace(replace) => match group.nodes(&replace.old).first() {
                Some(old) if world.add(replace.new) => world.retire(*old),
                _ => 0,
            },
        }
    }
}

fn millis(offset: Offset) -> i64 {
    let by = i64::try_from(offset.by().as_millis()).unwrap_or(i64::MAX);
    if offset.is_behind() { -by } else { by }
}
