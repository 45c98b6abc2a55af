//! Carries out the schedule of an experiment, between two steps of the simulation. A fault counts as fired
//! when it took effect: a link was cut, a process killed, a call of the disk failed. A fault that finds no
//! node to strike when it is due (such as the leader while there is none) waits for one. A fault that the
//! simulation does not support counts as never fired, which makes the verdict unknown.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chaos_spec::experiment::Entry;
use chaos_spec::fault::{BusyKind, ClockChange, DiskKind, Fault, Member, WorkerKind};
use chaos_spec::report::FaultRecord;
use chaos_spec::resolve::Link;
use chaos_spec::units::Offset;
use chaos_spec::{Group, NodeName, Target};
use consensus::VoteSeen;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::checks::minority;
use crate::machine::{Machine, Order};
use crate::seams::disk::{Damage, Failure};
use crate::seams::links::Shape;
use crate::seams::random::generator;
use crate::world::World;

/// Time by which a disk fault is extended, again and again, while no call has met it when it should end.
const UNFELT: Duration = Duration::from_millis(100);
/// Maximum time a power loss waits for a master that has just voted.
const AIM: Duration = Duration::from_secs(4);
/// Range of the time a master with a busy processor stands still, and then runs, in milliseconds.
const STALL_MS: std::ops::RangeInclusive<u64> = 2..=40;
/// Duration of a sync on a disk that other programs keep busy.
const BUSY_SYNC: Duration = Duration::from_millis(60);
/// Directory of a machine in which files at rest are damaged.
const AT_REST: &str = "/master/log";

/// What to undo when a fault ends.
enum Undo {
    Repair(Vec<Link>),
    Unshape(Vec<Link>, fn(&mut Shape)),
    Start(Vec<NodeName>),
    Resume(Vec<NodeName>),
    /// Masters with a busy processor, and the total of stalls before the fault.
    Calm(Vec<NodeName>, u64),
    /// A master with slow syncs, and its number of syncs before the fault.
    Quick(NodeName, u64),
    /// A master with a failing disk, and its number of failed calls before the fault.
    Disk(NodeName, u64),
    Clock(NodeName),
    /// A worker, how it was struck, and when the fault began.
    Worker(NodeName, WorkerKind, Duration),
}

/// Injects the faults of one run by its schedule.
pub struct Injector {
    schedule: VecDeque<(usize, Entry)>,
    /// Entries that are due and have found no node to strike yet.
    waiting: Vec<(usize, Entry)>,
    /// Simulated time at which the schedule began.
    origin: Duration,
    duration: Duration,
    random: StdRng,
    /// Faults under way: when each ends, its index in the schedule, and what to undo.
    active: Vec<(Duration, usize, Undo)>,
    /// Number of faults that cut each direction of a link.
    cuts: BTreeMap<Link, u32>,
    down: BTreeSet<NodeName>,
    /// Number of faults that pause each master.
    paused: BTreeMap<NodeName, u32>,
    /// Masters with a busy processor: whether each stands still now, and until when.
    busy: BTreeMap<NodeName, (bool, Duration)>,
    /// Number of times masters stood still because of a busy processor.
    stalls: u64,
    /// Number of faults that keep each worker away.
    away: BTreeMap<NodeName, u32>,
    /// Simulated time at which a worker last came back.
    back: Duration,
    records: Vec<FaultRecord>,
    /// Votes at the last step, kept while a power loss waits for a new vote.
    votes: BTreeMap<NodeName, VoteSeen>,
}

impl Injector {
    /// Creates an injector for a schedule that begins at `origin`.
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
            waiting: Vec::new(),
            origin,
            duration,
            random: generator(seed, 2),
            active: Vec::new(),
            cuts: BTreeMap::new(),
            down: BTreeSet::new(),
            paused: BTreeMap::new(),
            busy: BTreeMap::new(),
            stalls: 0,
            away: BTreeMap::new(),
            back: Duration::ZERO,
            votes: BTreeMap::new(),
        }
    }

    /// Returns what became of each entry of the schedule.
    pub fn records(self) -> Vec<FaultRecord> {
        self.records
    }

    /// Begins and ends the faults that are due.
    pub fn step(&mut self, world: &mut World<'_>) {
        let now = world.elapsed().saturating_sub(self.origin);
        self.end_due(world, now);
        self.stall(world, now);
        // A master that has joined meanwhile may link two sides.
        if !self.cuts.is_empty() {
            self.isolate(world);
        }
        while let Some(due) = self.schedule.pop_front_if(|(_, entry)| entry.at <= now) {
            self.waiting.push(due);
        }
        if self.waiting.is_empty() {
            self.votes.clear();
        }
        for (index, entry) in std::mem::take(&mut self.waiting) {
            // A node that is down cannot be struck again, but it can be replaced.
            let mut order = world.members();
            order.retain(|node| matches!(entry.fault, Fault::Member(_)) || !self.down.contains(node));
            order.shuffle(&mut self.random);
            if self.aims(index, &entry, now) {
                let voted = self.voted(world);
                // No master has voted since the last step: wait for a vote.
                if !order.iter().any(|node| voted.contains(node)) {
                    self.waiting.push((index, entry));
                    continue;
                }
                order.retain(|node| voted.contains(node));
            }
            let leader = world.leader().filter(|leader| order.contains(leader));
            let group = Group::new(order, leader);
            let moved = Entry { at: now, ..entry.clone() };
            let Some(fired) = self.begin(world, &group, index, &moved) else {
                self.waiting.push((index, entry));
                continue;
            };
            let record = &mut self.records[index];
            record.fired += fired;
            record.at = now;
            if entry.fault.is_instant() && fired > 0 {
                record.ended = Some(now);
            }
            tracing::info!(target: "chaos", what = record.what, fired, "fault");
        }
    }

    /// Makes masters with a busy processor stand still and run again in turns.
    fn stall(&mut self, world: &mut World<'_>, now: Duration) {
        for (node, (stands, until)) in &mut self.busy {
            if *until > now {
                continue;
            }
            *stands = !*stands;
            *until = now + Duration::from_millis(self.random.random_range(STALL_MS));
            self.stalls += u64::from(*stands);
            if !self.paused.contains_key(node) {
                world.pause(*node, *stands);
            }
        }
    }

    /// Returns whether this power loss should strike a master that has just voted, whose promise must
    /// survive. That is so for half of the power losses, and for a limited time.
    fn aims(&self, index: usize, entry: &Entry, now: Duration) -> bool {
        let Fault::Powerloss(strike) = &entry.fault else { return false };
        matches!(strike.target, Target::Any | Target::Follower)
            && index.is_multiple_of(2)
            && now < entry.at + AIM
            && now + AIM < self.duration
    }

    /// Returns the masters that have voted since the last step.
    fn voted(&mut self, world: &World<'_>) -> BTreeSet<NodeName> {
        let now = world.observer.votes();
        let before = std::mem::replace(&mut self.votes, now);
        let changed = |node: &NodeName, vote: &VoteSeen| before.get(node).is_some_and(|was| was != vote);
        self.votes.iter().filter(|(node, vote)| changed(node, vote)).map(|(node, _)| *node).collect()
    }

    /// Tells the observer which masters reach no majority.
    fn isolate(&self, world: &World<'_>) {
        let masters: BTreeSet<NodeName> = world.members().into_iter().collect();
        let cuts: BTreeSet<Link> = self.cuts.keys().copied().collect();
        let alone = minority::isolated(&masters, &cuts, world.quorum());
        world.observer.isolated(&alone, world.elapsed());
    }

    /// Ends every fault, and starts every node that is down.
    pub fn heal(&mut self, world: &mut World<'_>) {
        tracing::info!(target: "chaos", "everything heals");
        self.schedule.clear();
        self.waiting.clear();
        self.end_due(world, Duration::MAX);
        let down = std::mem::take(&mut self.down);
        down.into_iter().for_each(|node| world.start(node));
    }

    fn end_due(&mut self, world: &mut World<'_>, now: Duration) {
        let (due, rest) = std::mem::take(&mut self.active).into_iter().partition(|(end, ..)| *end <= now);
        self.active = rest;
        for (end, index, undo) in due {
            let felt = match &undo {
                Undo::Disk(node, before) => world.machine(*node).is_none_or(|m| m.disk.failed() > *before),
                Undo::Quick(node, before) => world.machine(*node).is_none_or(|m| m.disk.syncs() > *before),
                _ => true,
            };
            if !felt && now < self.duration {
                self.active.push((now + UNFELT, index, undo));
                continue;
            }
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
                self.isolate(world);
            }
            Undo::Unshape(links, change) => links.iter().for_each(|link| world.shape(*link, change)),
            Undo::Start(nodes) => {
                for node in nodes {
                    if self.down.remove(&node) {
                        world.start(node);
                    }
                }
            }
            Undo::Resume(nodes) => {
                for node in nodes {
                    let held = self.paused.entry(node).or_insert(1);
                    *held -= 1;
                    // A process that was killed and started again meanwhile is not paused.
                    if *held == 0 {
                        self.paused.remove(&node);
                        world.pause(node, false);
                    }
                }
            }
            Undo::Calm(nodes, before) => {
                for node in nodes {
                    self.busy.remove(&node);
                    if !self.paused.contains_key(&node) {
                        world.pause(node, false);
                    }
                }
                self.records[index].fired += self.stalls - before;
            }
            Undo::Disk(node, before) => {
                if let Some(machine) = world.machine(node) {
                    machine.disk.set_failure(None);
                    self.records[index].fired += machine.disk.failed() - before;
                }
            }
            Undo::Quick(node, before) => {
                if let Some(machine) = world.machine(node) {
                    machine.disk.set_slow(Duration::ZERO);
                    self.records[index].fired += machine.disk.syncs() - before;
                }
            }
            Undo::Clock(node) => {
                if let Some(machine) = world.machine(node) {
                    machine.clock.set_skew_ms(0);
                }
            }
            Undo::Worker(node, kind, began) => {
                self.judge_pods(world, node, self.origin + began);
                let held = self.away.entry(node).or_insert(1);
                *held -= 1;
                if *held == 0 {
                    self.away.remove(&node);
                }
                self.back = world.elapsed();
                match kind {
                    WorkerKind::Kill => world.on_worker(node, |sim, worker, _| sim.bounce(worker)),
                    WorkerKind::Cut => world.on_worker(node, |sim, worker, masters| {
                        masters.iter().for_each(|master| sim.repair(worker, *master));
                    }),
                    WorkerKind::Pause => world.workers().get(&node).iter().for_each(|w| w.pause(false)),
                }
            }
        }
    }

    /// Begins a fault and returns how often it took effect so far; `None` if there is no node to strike.
    fn begin(&mut self, world: &mut World<'_>, group: &Group, index: usize, entry: &Entry) -> Option<u64> {
        let end = entry.end(self.duration);
        match &entry.fault {
            Fault::Cut(cut) => {
                let links = some(group.cut(cut))?;
                for link in &links {
                    *self.cuts.entry(*link).or_default() += 1;
                    world.on_link(*link, |sim, from, to| sim.partition_oneway(from, to));
                }
                self.isolate(world);
                Some(self.begun(end, index, links, Undo::Repair))
            }
            Fault::Slow(slow) => {
                let links = some(group.links(&slow.from, &slow.to, slow.one_way))?;
                let (latency, jitter) = (slow.latency, slow.jitter.unwrap_or_default());
                links.iter().for_each(|link| {
                    world.shape(*link, |shape| (shape.latency, shape.jitter) = (latency, jitter));
                });
                Some(self.begun(end, index, links, |links| {
                    Undo::Unshape(links, |shape| (shape.latency, shape.jitter) = Default::default())
                }))
            }
            Fault::Lose(lose) => {
                let links = some(group.links(&lose.from, &lose.to, lose.one_way))?;
                let loss = lose.percent.fraction();
                links.iter().for_each(|link| world.shape(*link, |shape| shape.loss = loss));
                Some(self.begun(end, index, links, |links| Undo::Unshape(links, |shape| shape.loss = 0.0)))
            }
            Fault::Hold(hold) => {
                let links = some(group.links(&hold.from, &hold.to, hold.one_way))?;
                links.iter().for_each(|link| world.shape(*link, |shape| shape.holds += 1));
                Some(self.begun(end, index, links, |links| Undo::Unshape(links, |shape| shape.holds -= 1)))
            }
            Fault::Kill(strike) => {
                let nodes = some(group.nodes(&strike.target))?;
                Some(self.stop(world, nodes, index, end, false))
            }
            Fault::Powerloss(strike) => {
                let nodes = some(group.nodes(&strike.target))?;
                Some(self.stop(world, nodes, index, end, true))
            }
            Fault::Disk(disk) => {
                let nodes = some(group.nodes(&disk.target))?;
                Some(self.disk(world, nodes, index, end, disk.kind))
            }
            Fault::Clock(clock) => {
                let machines = some(Self::machines(world, group, &clock.target))?;
                for (node, machine) in &machines {
                    match clock.change {
                        ClockChange::Skew(offset) => {
                            machine.clock.set_skew_ms(millis(offset));
                            self.active.push((end, index, Undo::Clock(*node)));
                        }
                        ClockChange::Jump(offset) => machine.clock.jump_ms(millis(offset)),
                    }
                }
                Some(machines.len() as u64)
            }
            Fault::Member(member) => Self::member(world, group, member),
            Fault::Worker(fault) => {
                let mut order: Vec<NodeName> = world.workers().keys().copied().collect();
                order.shuffle(&mut self.random);
                let nodes = match &fault.target {
                    Target::Any => order.into_iter().take(1).collect(),
                    Target::Nodes(names) => order.into_iter().filter(|node| names.contains(node)).collect(),
                    _ => order,
                };
                let nodes = some(nodes)?;
                for node in &nodes {
                    *self.away.entry(*node).or_default() += 1;
                    match fault.kind {
                        WorkerKind::Kill => world.on_worker(*node, |sim, worker, _| sim.crash(worker)),
                        WorkerKind::Cut => world.on_worker(*node, |sim, worker, masters| {
                            masters.iter().for_each(|master| sim.partition(worker, *master));
                        }),
                        WorkerKind::Pause => world.workers().get(node).iter().for_each(|w| w.pause(true)),
                    }
                    self.active.push((end, index, Undo::Worker(*node, fault.kind, entry.at)));
                }
                Some(nodes.len() as u64)
            }
            Fault::Busy(busy) => {
                let nodes = some(group.nodes(&busy.target))?;
                match busy.kind {
                    BusyKind::Disk => {
                        let kind = DiskKind::SlowFsync { delay: BUSY_SYNC };
                        Some(self.disk(world, nodes, index, end, kind))
                    }
                    BusyKind::Processor => {
                        self.busy.extend(nodes.iter().map(|node| (*node, (false, entry.at))));
                        self.active.push((end, index, Undo::Calm(nodes, self.stalls)));
                        Some(0)
                    }
                }
            }
            Fault::Pause(strike) => {
                let mut nodes = some(group.nodes(&strike.target))?;
                nodes.retain(|node| world.pause(*node, true));
                nodes.iter().for_each(|node| *self.paused.entry(*node).or_default() += 1);
                let count = nodes.len() as u64;
                self.active.push((end, index, Undo::Resume(nodes)));
                Some(count)
            }
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

    /// Kills processes; with `power` their disks also lose what was not synced.
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
            world.stop(*node, power);
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
        world: &mut World<'_>,
        nodes: Vec<NodeName>,
        index: usize,
        end: Duration,
        kind: DiskKind,
    ) -> u64 {
        let mut fired = 0;
        for node in nodes {
            let Some(machine) = world.machine(node) else { continue };
            let fails = |failure| {
                machine.disk.set_failure(Some(failure));
                Undo::Disk(node, machine.disk.failed())
            };
            // The fault counts as fired by the calls that met it, counted when it ends.
            let undo = match kind {
                DiskKind::Eio => fails(Failure::SyncFails),
                DiskKind::Enospc => fails(Failure::Full),
                DiskKind::SlowFsync { delay } => {
                    machine.disk.set_slow(delay);
                    Undo::Quick(node, machine.disk.syncs())
                }
                DiskKind::Iops { limit } => {
                    machine.disk.set_slow(Duration::from_secs(1) / limit);
                    Undo::Quick(node, machine.disk.syncs())
                }
                DiskKind::Bitflip => {
                    fired += u64::from(self.damage(world, &machine, Damage::Flip));
                    continue;
                }
                DiskKind::Truncate => {
                    fired += u64::from(self.damage(world, &machine, Damage::Cut));
                    continue;
                }
            };
            self.active.push((end, index, undo));
        }
        fired
    }

    /// Restarts a machine on files that were damaged; returns whether a file was damaged.
    fn damage(&mut self, world: &mut World<'_>, machine: &Machine, damage: Damage) -> bool {
        world.stop(machine.node, false);
        let damaged = machine.disk.damage(Path::new(AT_REST), damage, &mut self.random);
        tracing::info!(target: "chaos", machine = machine.name, ?damage, ?damaged, "damage");
        if damaged.is_some() {
            world.suspect(machine.node);
        }
        world.start(machine.node);
        damaged.is_some()
    }

    /// Checks that a worker that was away long enough lost its pods to other workers, if there was a leader
    /// and the other workers were there all the while.
    fn judge_pods(&self, world: &World<'_>, node: NodeName, began: Duration) {
        let now = world.elapsed();
        let elected = world.observer.leaders().last().map(|(since, ..)| *since).unwrap_or_default();
        let alone = self.away.keys().all(|other| *other == node);
        let long = alone && now.saturating_sub(began.max(elected).max(self.back)) > world.scale.moved;
        let (there, wanted) = (world.pods_beside(&BTreeSet::from([node])), world.pods_wanted());
        tracing::info!(target: "chaos", %node, there, wanted, long, "pods beside a worker that was away");
        if long && world.leader().is_some() && world.workers().len() > 1 && there < wanted {
            let what =
                format!("{node} was away for {:?}: {there} of {wanted} pods run elsewhere", now - began);
            world.observer.violation("pods-move", what);
        }
    }

    fn member(world: &mut World<'_>, group: &Group, member: &Member) -> Option<u64> {
        let leader = world.leader();
        let order = |world: &World<'_>, order| {
            let machine = leader.and_then(|leader| world.machine(leader))?;
            machine.order(order).then_some(1)
        };
        match member {
            Member::TransferLeader(target) => match *group.nodes(target).first()? {
                to if Some(to) == leader => Some(1),
                to => order(world, Order::TransferLeader(world.node_id(to)?)),
            },
            Member::Add(new) => Some(u64::from(world.add(*new))),
            Member::Remove(target) => world.retire(*group.nodes(target).first()?).then_some(1),
            Member::Replace(replace) => {
                let old = *group.nodes(&replace.old).first()?;
                world.retire(old).then(|| u64::from(world.add(replace.new)))
            }
        }
    }
}

/// Returns `None` for an empty list.
fn some<T>(all: Vec<T>) -> Option<Vec<T>> {
    (!all.is_empty()).then_some(all)
}

fn millis(offset: Offset) -> i64 {
    let by = i64::try_from(offset.by().as_millis()).unwrap_or(i64::MAX);
    if offset.is_behind() { -by } else { by }
}
