//! Carries the schedule of an experiment out, between two steps of the
//! simulation. A fault counts when it really happened: a link was there to be
//! cut, a process to be killed, a call of the disk failed. One that finds nobody to
//! strike when it is due, as while nobody leads, waits for somebody. What the
//! simulation cannot do counts as never fired, which makes the verdict unknown.

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

/// A fault of the disk that nothing has felt when it should end goes on for so long.
const UNFELT: Duration = Duration::from_millis(100);
/// How long a power loss waits for somebody who has just voted.
const AIM: Duration = Duration::from_secs(4);
/// For how long a master whose processor is busy stands still, and goes on, in milliseconds.
const STALL_MS: std::ops::RangeInclusive<u64> = 2..=40;
/// What a sync takes on a disk that others write to as fast as they can.
const BUSY_SYNC: Duration = Duration::from_millis(60);
/// Where on a machine files are damaged.
const AT_REST: &str = "/master/log";

/// What ends a fault.
enum Undo {
    Repair(Vec<Link>),
    Unshape(Vec<Link>, fn(&mut Shape)),
    Start(Vec<NodeName>),
    Resume(Vec<NodeName>),
    /// With how often they stood still before.
    Calm(Vec<NodeName>, u64),
    /// With how many syncs there had been before.
    Quick(NodeName, u64),
    /// With how many calls had failed before.
    Disk(NodeName, u64),
    Clock(NodeName),
    /// With when it began.
    Worker(NodeName, WorkerKind, Duration),
}

/// Carries out the schedule of one run.
pub struct Injector {
    schedule: VecDeque<(usize, Entry)>,
    /// What is due and has found nobody to strike yet.
    waiting: Vec<(usize, Entry)>,
    /// When the schedule began, in simulated time.
    origin: Duration,
    duration: Duration,
    random: StdRng,
    /// Faults under way: when they end, and whose they are.
    active: Vec<(Duration, usize, Undo)>,
    /// How many faults hold each direction cut.
    cuts: BTreeMap<Link, u32>,
    down: BTreeSet<NodeName>,
    /// How many faults let each master stand still.
    paused: BTreeMap<NodeName, u32>,
    /// Masters whose processor others keep busy: whether each stands still, and until when that stays so.
    busy: BTreeMap<NodeName, (bool, Duration)>,
    /// How often masters stood still because of that.
    stalls: u64,
    /// How many faults keep each worker away.
    away: BTreeMap<NodeName, u32>,
    /// When a worker last came back.
    back: Duration,
    records: Vec<FaultRecord>,
    /// The votes at the last step, while a power loss waits for one.
    votes: BTreeMap<NodeName, VoteSeen>,
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

    /// What became of each entry of the schedule.
    pub fn records(self) -> Vec<FaultRecord> {
        self.records
    }

    /// Begins and ends what is due.
    pub fn step(&mut self, world: &mut World<'_>) {
        let now = world.elapsed().saturating_sub(self.origin);
        self.end_due(world, now);
        self.stall(world, now);
        // A master that has come meanwhile may link two sides.
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
            // What is down already cannot be struck, but it can be replaced.
            let mut order = world.members();
            order.retain(|node| matches!(entry.fault, Fault::Member(_)) || !self.down.contains(node));
            order.shuffle(&mut self.random);
            if self.aims(index, &entry, now) {
                let voted = self.voted(world);
                // Nobody has voted just now: wait for it.
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

    /// Lets masters whose processor is busy stand still for a while, and go on for a while.
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

    /// Whether this is a power loss that should strike who has just voted: what a
    /// master has promised a moment ago is what it must not forget. Half of those that
    /// strike somebody, for a while.
    fn aims(&self, index: usize, entry: &Entry, now: Duration) -> bool {
        let Fault::Powerloss(strike) = &entry.fault else { return false };
        matches!(strike.target, Target::Any | Target::Follower)
            && index.is_multiple_of(2)
            && now < entry.at + AIM
            && now + AIM < self.duration
    }

    /// Who has voted since the last step.
    fn voted(&mut self, world: &World<'_>) -> BTreeSet<NodeName> {
        let now = world.observer.votes();
        let before = std::mem::replace(&mut self.votes, now);
        let changed = |node: &NodeName, vote: &VoteSeen| before.get(node).is_some_and(|was| was != vote);
        self.votes.iter().filter(|(node, vote)| changed(node, vote)).map(|(node, _)| *node).collect()
    }

    /// Tells the observer who reaches no majority.
    fn isolate(&self, world: &World<'_>) {
        let masters: BTreeSet<NodeName> = world.members().into_iter().collect();
        let cuts: BTreeSet<Link> = self.cuts.keys().copied().collect();
        let alone = minority::isolated(&masters, &cuts, world.quorum());
        world.observer.isolated(&alone, world.elapsed());
    }

    /// Ends everything that is wrong, and starts every node that is down.
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
                    // One that was killed meanwhile and started again does not stand still.
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

    /// Begins a fault and says how often it took effect so far; none where there is nobody to strike.
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
            // Counted at its end, by the calls that felt it.
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

    /// A machine restarts on files that are not what it wrote.
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

    /// A worker that was away for long enough has lost its pods to the others, if somebody led and they were there
    /// all the while.
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

/// None for nobody.
fn some<T>(all: Vec<T>) -> Option<Vec<T>> {
    (!all.is_empty()).then_some(all)
}

fn millis(offset: Offset) -> i64 {
    let by = i64::try_from(offset.by().as_millis()).unwrap_or(i64::MAX);
    if offset.is_behind() { -by } else { by }
}
