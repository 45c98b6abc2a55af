//! The simulated cluster: machines with masters, clients, and the network between them. `run.rs` steps it,
//! `inject.rs` injects faults into it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow};
use chaos_spec::experiment::Cluster;
use chaos_spec::fault::{Fault, Member, Replace};
use chaos_spec::resolve::Link;
use chaos_spec::{Experiment, NodeName, Target};
use consensus::NodeId;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use turmoil::{Sim, ToIpAddr};

use crate::machine::{Machine, Order};
use crate::observer::Observer;
use crate::scale::Scale;
use crate::seams::clock::EPOCH_SECONDS;
use crate::seams::links::{Links, Shape};
use crate::seams::process::Process;
use crate::seams::random::generator;
use crate::worker::{self, Worker};
use crate::workload::{Workload, store_token};

/// Interval at which the leader is asked again to remove a master, for near masters.
const RETIRE: Duration = Duration::from_millis(500);
/// Ports of outgoing connections. Turmoil never frees the port of a connection that a cut has swallowed, and
/// a run of an hour has many of those.
const PORTS: RangeInclusive<u16> = 10_000..=65_535;
/// Stream of the seed for the order of processes.
const ORDER: u64 = 4;
/// Number of consecutive failed starts after which a master is taken to refuse its damaged files.
const REFUSALS: u64 = 3;

/// The simulated cluster: machines, workers, clients and network.
pub struct World<'a> {
    /// Records all that happens.
    pub observer: Observer,
    /// Data shared by the clients.
    pub workload: Workload,
    links: Links,
    sim: Sim<'a>,
    /// Time scale of this cluster.
    pub scale: Scale,
    cluster: Cluster,
    ticks: u64,
    machines: BTreeMap<NodeName, Arc<Machine>>,
    /// Processes on the machines of masters that are up.
    processes: BTreeMap<NodeName, Process>,
    /// Random numbers for the order in which processes run, a different order each tick.
    order: StdRng,
    workers: BTreeMap<NodeName, Arc<Worker>>,
    /// Masters that should be members in the end.
    expected: BTreeSet<NodeName>,
    /// Masters that are to leave and have not left yet.
    retiring: BTreeSet<NodeName>,
    /// Masters whose files are damaged.
    suspects: BTreeSet<NodeName>,
    /// Number of masters at the beginning.
    founders: usize,
    /// Highest number of a master that the experiment names.
    named: u32,
    /// Masters that the experiment itself replaces: replacing one of them again would leave an even number.
    replaced: BTreeSet<NodeName>,
}

impl<'a> World<'a> {
    /// Creates the world of an experiment, before anything has happened.
    ///
    /// # Errors
    /// Fails if the machines cannot be set up.
    pub fn new(experiment: &Experiment, seed: u64) -> Result<Self> {
        let cluster = experiment.spec.cluster;
        let scale = Scale::of(cluster.distance);
        let sim = turmoil::Builder::new()
            .rng_seed(seed)
            .epoch(SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH_SECONDS))
            .simulation_duration(Duration::MAX)
            .tick_duration(scale.tick)
            .min_message_latency(scale.latency / 10)
            .max_message_latency(scale.latency)
            .tcp_capacity(4096)
            .ephemeral_ports(PORTS)
            .enable_random_order()
            .build();
        let observer = Observer::default();
        let links = Links::new(seed);
        let workload = Workload::new(&experiment.spec.workload, observer.clone(), seed, links.clone());
        let (machines, processes, workers, expected, retiring, suspects) = Default::default();
        let named = experiment.spec.schedule.iter().filter_map(|entry| match &entry.fault {
            Fault::Member(Member::Add(new) | Member::Replace(Replace { new, .. })) => Some(new.number()),
            _ => None,
        });
        let named = named.max().unwrap_or_default();
        let replaced = experiment.spec.schedule.iter().filter_map(|entry| match &entry.fault {
            Fault::Member(Member::Replace(Replace { old: Target::Nodes(old), .. })) => Some(old.clone()),
            _ => None,
        });
        let replaced = replaced.flatten().collect();
        let founders = cluster.masters as usize;
        let mut world = Self {
            observer,
            workload,
            links,
            sim,
            scale,
            cluster,
            ticks: 0,
            machines,
            processes,
            order: generator(seed, ORDER),
            workers,
            expected,
            retiring,
            suspects,
            founders,
            named,
            replaced,
        };
        for number in 1..=cluster.masters {
            let node = NodeName::master(number).ok_or_else(|| anyhow!("masters are counted from 1"))?;
            world.place(node)?;
        }
        world.place_clients();
        world.place_workers(cluster.workers);
        Ok(world)
    }

    /// Adds a turmoil host that runs `software`, again after each restart.
    fn host<F: Future<Output = ()> + 'static>(&mut self, at: impl ToIpAddr, software: impl Fn() -> F + 'a) {
        self.sim.host(at, move || {
            let running = software();
            async move {
                running.await;
                Ok(())
            }
        });
    }

    fn place(&mut self, node: NodeName) -> Result<()> {
        let machine = Machine::new(node, &self.workload, &self.cluster)?;
        let system = machine.clone();
        self.host(machine.ip, move || system.sockets.serve());
        self.machines.insert(node, machine);
        self.boot(node)?;
        self.expected.insert(node);
        self.workload.set_masters(self.addresses());
        Ok(())
    }

    /// Starts the master of a machine whose operating system runs.
    fn boot(&mut self, node: NodeName) -> Result<()> {
        if let Some(machine) = self.machines.get(&node) {
            let process = Process::start(&machine.ip.to_string(), machine.clone().run())?;
            self.processes.insert(node, process);
        }
        Ok(())
    }

    fn place_clients(&mut self) {
        let (founder, links) = (self.addresses(), self.links.clone());
        self.sim.client("operator", async move {
            if let Some(founder) = founder.first() {
                store_token(*founder, links).await;
            }
            Ok(())
        });
        // All clients share one machine: each machine costs time at every tick, idle or not.
        let workload = self.workload.clone();
        self.host("clients", move || workload.clone().everyone());
    }

    fn place_workers(&mut self, count: u32) {
        for node in (1..=count).filter_map(NodeName::worker) {
            let worker = Worker::new(node, &self.workload, self.scale);
            let software = worker.clone();
            self.host(worker.ip, move || software.clone().run());
            self.workers.insert(node, worker);
        }
        if count > 0 {
            let workload = self.workload.clone();
            self.host("deployer", move || worker::deploy(workload.clone(), count));
        }
    }

    /// Returns the workers by name.
    pub fn workers(&self) -> &BTreeMap<NodeName, Arc<Worker>> {
        &self.workers
    }

    /// Applies a change to a worker's machine: stops it, starts it, or cuts it off from all masters.
    pub fn on_worker(&mut self, node: NodeName, change: impl Fn(&mut Sim<'_>, IpAddr, &[IpAddr])) {
        let masters: Vec<IpAddr> = self.machines.values().map(|machine| machine.ip).collect();
        if let Some(worker) = self.workers.get(&node) {
            change(&mut self.sim, worker.ip, &masters);
        }
    }

    /// Returns the number of pods on workers other than `nodes`, as the leader knows it.
    pub fn pods_beside(&self, nodes: &BTreeSet<NodeName>) -> u32 {
        let leader = self.leader();
        let masters = self.observer.masters();
        let master = masters.iter().find(|(node, _)| Some(*node) == leader);
        let page = master.and_then(|(_, master)| master.store().range(worker::PODS, None, 0, None).ok());
        let pods = page.iter().flat_map(|page| &page.objects);
        let run = pods.filter_map(|pod| worker::runs_on(&pod.value)).filter(|node| !nodes.contains(node));
        u32::try_from(run.count()).unwrap_or(u32::MAX)
    }

    /// Returns whether all pods that should run do.
    pub fn serves(&self) -> bool {
        self.workers.is_empty() || self.pods_beside(&BTreeSet::new()) >= self.pods_wanted()
    }

    /// Returns the number of pods that should run.
    pub fn pods_wanted(&self) -> u32 {
        worker::replicas(u32::try_from(self.workers.len()).unwrap_or(u32::MAX))
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.expected.iter().filter_map(|node| self.machines.get(node)).map(|machine| machine.ip).collect()
    }

    /// Returns the simulated time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Advances the simulation by one tick.
    ///
    /// # Errors
    /// Fails if the simulation itself cannot go on.
    pub fn step(&mut self) -> Result<()> {
        self.ticks += 1;
        if self.ticks.is_multiple_of(self.scale.ticks(RETIRE)) {
            self.replace_damaged();
            self.retire_on();
        }
        self.run_processes();
        self.sim.step().map(drop).map_err(|error| anyhow!("the simulation stopped: {error}"))
    }

    /// Runs all processes that are not paused for one tick, in a random order.
    fn run_processes(&mut self) {
        let (now, tick) = (self.sim.elapsed(), self.scale.tick);
        let mut processes: Vec<&mut Process> = self.processes.values_mut().collect();
        processes.shuffle(&mut self.order);
        processes.into_iter().for_each(|process| process.tick(now, tick));
    }

    /// Pauses the process of a node, or lets it continue; returns false if none runs.
    pub fn pause(&mut self, node: NodeName, paused: bool) -> bool {
        let (Some(process), Some(machine)) = (self.processes.get_mut(&node), self.machines.get(&node)) else {
            return false;
        };
        process.pause(paused);
        self.links.stand_still(machine.ip, paused);
        true
    }

    /// Returns the masters that are members, or should soon be.
    pub fn members(&self) -> Vec<NodeName> {
        self.expected.iter().copied().collect()
    }

    /// Returns the size of a majority; changes of members do not alter it, since the group keeps its size.
    pub fn quorum(&self) -> usize {
        // With an even number of masters, one does not vote.
        let voters = (self.workload.masters().len().min(self.founders).max(1) - 1) / 2 * 2 + 1;
        voters / 2 + 1
    }

    /// Returns the machine of a node.
    pub fn machine(&self, node: NodeName) -> Option<Arc<Machine>> {
        self.machines.get(&node).cloned()
    }

    /// Returns the master that considers itself leader.
    pub fn leader(&self) -> Option<NodeName> {
        self.observer.leader()
    }

    /// Returns the id that a node's master got when it joined.
    pub fn node_id(&self, node: NodeName) -> Option<NodeId> {
        self.observer.node_id(node)
    }

    /// Applies a change to the link between two machines.
    pub fn on_link(&mut self, (from, to): Link, change: impl FnOnce(&mut Sim<'_>, IpAddr, IpAddr)) {
        let ip = |node| self.machines.get(&node).map(|machine| machine.ip);
        if let (Some(from), Some(to)) = (ip(from), ip(to)) {
            change(&mut self.sim, from, to);
        }
    }

    /// Changes the faults of the link from one machine to another.
    pub fn shape(&mut self, (from, to): Link, change: impl FnOnce(&mut Shape)) {
        let ip = |node| self.machines.get(&node).map(|machine| machine.ip);
        if let (Some(from), Some(to)) = (ip(from), ip(to)) {
            self.links.shape((from, to), change);
        }
    }

    /// Kills the process of a node; with `power` its whole machine goes down and answers nothing.
    pub fn stop(&mut self, node: NodeName, power: bool) {
        if let Some(machine) = self.machines.get(&node) {
            self.observer.last_seen(node);
            self.processes.remove(&node);
            self.links.stand_still(machine.ip, false);
            self.sim.crash(machine.ip);
            self.links.refuse(machine.ip, !power);
        }
    }

    /// Starts a node that was stopped, unless it has left for good.
    pub fn start(&mut self, node: NodeName) {
        if let Some(machine) = self.machines.get(&node).filter(|_| self.expected.contains(&node)) {
            self.links.refuse(machine.ip, false);
            self.sim.bounce(machine.ip);
            if let Err(error) = self.boot(node) {
                tracing::error!(%error, "a process was not started");
            }
        }
    }

    /// Adds a machine whose master joins; returns false if the name is taken.
    pub fn add(&mut self, node: NodeName) -> bool {
        if self.machines.contains_key(&node) {
            return false;
        }
        match self.place(node) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "a machine was not placed");
                false
            }
        }
    }

    /// Makes a master leave for good: the leader is asked until it has left. Returns false if it never
    /// joined.
    pub fn retire(&mut self, node: NodeName) -> bool {
        let known = self.node_id(node).is_some() && self.expected.contains(&node);
        if known {
            self.retiring.insert(node);
        }
        known
    }

    /// Marks a machine's files as damaged: if its master refuses to start, the master is replaced.
    pub fn suspect(&mut self, node: NodeName) {
        self.suspects.insert(node);
    }

    fn replace_damaged(&mut self) {
        for node in self.suspects.clone() {
            let refuses = self.machines.get(&node).is_some_and(|machine| machine.failures() >= REFUSALS);
            if !refuses || self.replaced.contains(&node) || self.leader().is_none_or(|leader| leader == node)
            {
                continue;
            }
            self.suspects.remove(&node);
            let last = self.machines.keys().map(|node| node.number()).max().unwrap_or_default();
            let Some(new) = NodeName::master(last.max(self.named) + 1) else { continue };
            tracing::info!(target: "chaos", %node, %new, "a master that refuses its files is replaced");
            if !self.retiring.contains(&node) && self.retire(node) {
                self.add(new);
            }
        }
    }

    fn retire_on(&mut self) {
        let Some(leader) = self.leader() else { return };
        let members = self.observer.members_of(leader);
        let mut staying = Vec::new();
        for node in self.retiring.clone() {
            let Some(id) = self.node_id(node) else { continue };
            if members.iter().any(|member| member.id == id) {
                staying.push(id);
                continue;
            }
            tracing::info!(target: "chaos", %node, "a master has left");
            self.retiring.remove(&node);
            self.expected.remove(&node);
            self.stop(node, true);
            self.workload.set_masters(self.addresses());
        }
        if let Some(machine) = self.machine(leader).filter(|_| !staying.is_empty()) {
            machine.order(Order::Remove(staying));
        }
    }

    /// Returns whether every expected master runs, is a member and follows the same leader, an odd number of
    /// them vote, and all know the same members.
    pub fn is_whole(&self) -> bool {
        let Some(leader) = self.leader().filter(|_| self.retiring.is_empty()) else { return false };
        let members = self.observer.members_of(leader);
        let names: BTreeSet<String> = members.iter().map(|member| member.name.clone()).collect();
        let expected: BTreeSet<String> = self.expected.iter().map(ToString::to_string).collect();
        let odd = (expected.len() - 1) / 2 * 2 + 1;
        let masters = self.observer.masters();
        let known = |members: &[consensus::Member]| -> BTreeSet<(u64, bool)> {
            members.iter().map(|member| (member.id, member.voter)).collect()
        };
        // A master that does not know the members may serve, but will never vote.
        let fit = |node: &NodeName| {
            let master = masters.iter().find(|(of, _)| of == node).map(|(_, master)| master);
            master.is_some_and(|master| {
                master.leadership().borrow().quorum && known(&master.members()) == known(&members)
            })
        };
        names == expected
            && members.iter().filter(|member| member.voter).count() == odd
            && self.expected.iter().all(fit)
    }

    /// Records the current revision as that after the last fault; every master must show later changes.
    pub fn mark_healed(&self) {
        let revisions = self.observer.masters().into_iter().map(|(_, master)| master.store().revision());
        self.workload.healed_at.store(revisions.min().unwrap_or_default(), Ordering::Relaxed);
    }

    /// Lets the clients begin.
    pub fn begin_load(&self) {
        self.workload.begun.store(true, Ordering::Relaxed);
    }

    /// Stops the clients from beginning calls.
    pub fn end_load(&self) {
        self.workload.ended.store(true, Ordering::Relaxed);
    }
}
