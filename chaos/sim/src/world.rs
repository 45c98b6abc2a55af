//! The simulated world: machines with masters, clients, and the network between
//! them. `run.rs` steps it, `inject.rs` breaks it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow};
use chaos_spec::resolve::Link;
use chaos_spec::{Experiment, NodeName};
use consensus::NodeId;
use turmoil::{Sim, ToIpAddr};

use crate::machine::{Machine, Order};
use crate::observer::Observer;
use crate::seams::clock::EPOCH_SECONDS;
use crate::workload::{Workload, store_token};

/// Longest latency of a link that nothing is wrong with.
pub const LATENCY: Duration = Duration::from_millis(2);
const LATENCY_MIN: Duration = Duration::from_micros(200);
/// Nothing happens between two ticks: the unit of simulated time.
const TICK: Duration = Duration::from_millis(1);
/// How often whoever leads is asked again to let a master go.
const RETIRE_TICKS: u64 = 500;

/// Everything there is.
pub struct World<'a> {
    /// Sees everything.
    pub observer: Observer,
    /// What the clients share.
    pub workload: Workload,
    sim: Sim<'a>,
    seed: u64,
    ticks: u64,
    machines: BTreeMap<NodeName, Arc<Machine>>,
    /// Who should be a member in the end.
    expected: BTreeSet<NodeName>,
    /// Who is to leave, and has not yet.
    retiring: BTreeSet<NodeName>,
}

impl<'a> World<'a> {
    /// The world of an experiment, before anything has happened.
    ///
    /// # Errors
    /// Where the machines cannot be laid out.
    pub fn new(experiment: &Experiment, seed: u64) -> Result<Self> {
        let sim = turmoil::Builder::new()
            .rng_seed(seed)
            .epoch(SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH_SECONDS))
            .simulation_duration(Duration::MAX)
            .tick_duration(TICK)
            .min_message_latency(LATENCY_MIN)
            .max_message_latency(LATENCY)
            .tcp_capacity(4096)
            .enable_random_order()
            .build();
        let observer = Observer::default();
        let workload = Workload::new(&experiment.spec.workload, observer.clone(), seed);
        let (machines, expected, retiring) = Default::default();
        let mut world = Self { observer, workload, sim, seed, ticks: 0, machines, expected, retiring };
        for number in 1..=experiment.spec.cluster.masters {
            let node = NodeName::master(number).ok_or_else(|| anyhow!("masters are counted from 1"))?;
            world.place(node)?;
        }
        world.place_clients();
        Ok(world)
    }

    /// A host on which this software runs, and again after each start.
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
        let machine = Machine::new(node, self.seed, self.observer.clone())?;
        let software = machine.clone();
        self.host(machine.ip, move || software.clone().run());
        self.machines.insert(node, machine);
        self.expected.insert(node);
        self.workload.set_masters(self.addresses());
        Ok(())
    }

    fn place_clients(&mut self) {
        let founder = self.addresses();
        self.sim.client("operator", async move {
            if let Some(founder) = founder.first() {
                store_token(*founder).await;
            }
            Ok(())
        });
        // One machine for all of them: each machine costs time at every tick, idle or not.
        let workload = self.workload.clone();
        self.host("clients", move || workload.clone().everyone());
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.expected.iter().filter_map(|node| self.machines.get(node)).map(|machine| machine.ip).collect()
    }

    /// Simulated time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// One tick.
    ///
    /// # Errors
    /// Where the simulation itself cannot go on.
    pub fn step(&mut self) -> Result<()> {
        self.ticks += 1;
        if self.ticks.is_multiple_of(RETIRE_TICKS) {
            self.retire_on();
        }
        self.sim.step().map(drop).map_err(|error| anyhow!("the simulation stopped: {error}"))
    }

    /// Who is a member, or should soon be.
    pub fn members(&self) -> Vec<NodeName> {
        self.expected.iter().copied().collect()
    }

    /// The machine of a node.
    pub fn machine(&self, node: NodeName) -> Option<Arc<Machine>> {
        self.machines.get(&node).cloned()
    }

    /// Who leads, as it thinks itself.
    pub fn leader(&self) -> Option<NodeName> {
        self.observer.leader()
    }

    /// The id that a node's master got when it joined.
    pub fn node_id(&self, node: NodeName) -> Option<NodeId> {
        self.observer.node_id(node)
    }

    /// Does something to the link between two machines.
    pub fn on_link(&mut self, (from, to): Link, change: impl FnOnce(&mut Sim<'_>, IpAddr, IpAddr)) {
        let ip = |node| self.machines.get(&node).map(|machine| machine.ip);
        if let (Some(from), Some(to)) = (ip(from), ip(to)) {
            change(&mut self.sim, from, to);
        }
    }

    /// SIGKILL.
    pub fn stop(&mut self, node: NodeName) {
        if let Some(machine) = self.machines.get(&node) {
            self.sim.crash(machine.ip);
        }
    }

    /// Starts what was stopped, unless it has left for good.
    pub fn start(&mut self, node: NodeName) {
        if let Some(machine) = self.machines.get(&node).filter(|_| self.expected.contains(&node)) {
            self.sim.bounce(machine.ip);
        }
    }

    /// A new machine joins; false where there is one of that name.
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

    /// A master is to leave for good: whoever leads is asked until it has. 0 where it never joined, or is the
    /// founder, which the others' join addresses name.
    pub fn retire(&mut self, node: NodeName) -> u64 {
        let known = node.number() != 1 && self.node_id(node).is_some() && self.expected.contains(&node);
        if known {
            self.retiring.insert(node);
        }
        u64::from(known)
    }

    fn retire_on(&mut self) {
        let Some(leader) = self.leader() else { return };
        let members = self.observer.members_of(leader);
        for node in self.retiring.clone() {
            let Some(id) = self.node_id(node) else { continue };
            if members.iter().any(|member| member.id == id) {
                if let Some(machine) = self.machine(leader) {
                    machine.order(Order::Remove(id));
                }
                continue;
            }
            tracing::info!(target: "chaos", %node, "a master has left");
            self.retiring.remove(&node);
            self.expected.remove(&node);
            self.stop(node);
            self.workload.set_masters(self.addresses());
        }
    }

    /// Whether every master that should be there runs, is a member and follows one leader, an odd number of them
    /// votes, and all know the same members.
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
        // A master that does not know the members serves, but will never vote.
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

    /// Clients begin.
    pub fn begin_load(&self) {
        self.workload.begun.store(true, Ordering::Relaxed);
    }

    /// No more calls begin.
    pub fn end_load(&self) {
        self.workload.ended.store(true, Ordering::Relaxed);
    }
}
