//! One run: boots a cluster, lets clients work while things go wrong, heals
//! everything, and judges. `main.rs` calls it once in a process.
//!
//! boot -> chaos -> heal (the cluster must come back by itself) -> drain -> judge

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use turmoil::Sim;

use crate::faults::{Chaos, LATENCY};
use crate::history::{History, Outcome};
use crate::machine::Machine;
use crate::observer::Observer;
use crate::oracle::{self, Violation};
use crate::seams::clock::EPOCH_SECONDS;
use crate::workload::{Workload, store_token};

/// A cluster boots within this, in simulated time.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// After the last fault the cluster serves, whole and equal, within this: the bound on liveness.
const HEAL_LIMIT: Duration = Duration::from_secs(60);
/// Writes acknowledged after the last fault before the cluster counts as serving.
const HEALED_WRITES: usize = 20;
/// Longer than any call of a client.
const DRAIN: Duration = Duration::from_secs(8);
const TICK: Duration = Duration::from_millis(1);

/// What is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// 1, 3, 5 or 7.
    pub masters: usize,
    /// Clients that read and write.
    pub clients: usize,
    /// Clients that watch.
    pub watchers: usize,
    /// Objects they work on.
    pub keys: usize,
    /// How long things go wrong.
    pub chaos: Duration,
    /// Where the history of the run is written.
    pub history: Option<PathBuf>,
}

/// What came of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Masters in the cluster.
    pub masters: usize,
    /// Simulated time, in milliseconds.
    pub simulated_ms: u64,
    /// What broke; empty when the run passed.
    pub violations: Vec<Violation>,
    /// How often each kind of fault really happened.
    pub faults: BTreeMap<&'static str, u64>,
    /// Terms that had a leader.
    pub elections: u64,
    /// Operations by outcome.
    pub operations: BTreeMap<&'static str, u64>,
    /// Events that watches delivered.
    pub watched: u64,
    /// Changes in the store.
    pub changes: u64,
    /// From the last fault until the cluster served again, whole, in milliseconds.
    pub heal_ms: Option<u64>,
    /// Hash of the trace.
    pub trace: String,
    /// Lines of the trace.
    pub lines: u64,
}

struct World<'a> {
    options: Options,
    sim: Sim<'a>,
    machines: Vec<Arc<Machine>>,
    observer: Observer,
    workload: Workload,
}

/// Runs the simulation. What went wrong in it is in the report.
///
/// # Errors
/// Where the simulation itself cannot go on.
pub fn run(options: Options) -> Result<Report> {
    let mut world = World::new(options)?;
    let mut chaos = None;
    let mut heal_ms = None;
    match world.boot()? {
        false => world.observer.violation("boots", format!("no cluster after {BOOT_LIMIT:?}")),
        true => {
            let mut hand = world.chaos()?;
            heal_ms = world.heal(&mut hand)?;
            chaos = Some(hand);
        }
    }
    world.drain()?;
    if heal_ms.is_some() {
        world.compare_replicas();
    }
    let (history, mut violations) = world.observer.take();
    violations.extend(oracle::check(&history));
    world.keep(&history)?;
    Ok(Report {
        seed: world.options.seed,
        masters: world.options.masters,
        simulated_ms: millis(world.sim.elapsed()),
        violations,
        faults: chaos.map(|chaos: Chaos| chaos.fired().clone()).unwrap_or_default(),
        elections: world.observer.elections(),
        operations: outcomes(&history),
        watched: history.watches.iter().flat_map(|w| &w.streams).map(|s| s.events.len() as u64).sum(),
        changes: history.truth.events.len() as u64,
        heal_ms,
        trace: String::new(),
        lines: 0,
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl World<'_> {
    fn new(options: Options) -> Result<Self> {
        let mut sim = turmoil::Builder::new()
            .rng_seed(options.seed)
            .epoch(SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH_SECONDS))
            .simulation_duration(Duration::MAX)
            .tick_duration(TICK)
            .min_message_latency(Duration::from_micros(200))
            .max_message_latency(LATENCY)
            .tcp_capacity(4096)
            .enable_random_order()
            .build();
        let observer = Observer::default();
        let machines = (0..options.masters)
            .map(|index| Machine::new(index, options.seed, observer.clone()))
            .collect::<Result<Vec<_>>>()?;
        for machine in &machines {
            let machine = machine.clone();
            sim.host(machine.ip, move || {
                let machine = machine.clone();
                async move {
                    machine.run().await;
                    Ok(())
                }
            });
        }
        let workload = Workload {
            masters: machines.iter().map(|machine| machine.ip).collect(),
            keys: options.keys,
            begun: Arc::new(AtomicBool::new(false)),
            ended: Arc::new(AtomicBool::new(false)),
            observer: observer.clone(),
            seed: options.seed,
        };
        let founder = machines.first().context("no masters")?.ip;
        sim.client("operator", async move {
            store_token(founder).await;
            Ok(())
        });
        for number in 0..options.clients {
            let workload = workload.clone();
            sim.host(format!("client-{number}"), move || {
                let workload = workload.clone();
                async move {
                    workload.client(number).await;
                    Ok(())
                }
            });
        }
        for number in 0..options.watchers {
            let workload = workload.clone();
            sim.host(format!("watcher-{number}"), move || {
                let workload = workload.clone();
                async move {
                    workload.watcher(number).await;
                    Ok(())
                }
            });
        }
        Ok(Self { options, sim, machines, observer, workload })
    }

    fn step(&mut self) -> Result<()> {
        self.sim.step().map(drop).map_err(|error| anyhow!("the simulation stopped: {error}"))
    }

    /// Steps until `done`, at most for `limit`; says whether it came to that.
    fn until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Result<bool> {
        let end = self.sim.elapsed() + limit;
        while !done(self) {
            if self.sim.elapsed() >= end {
                return Ok(false);
            }
            self.step()?;
        }
        Ok(true)
    }

    /// Whether every master runs, votes and follows one leader.
    fn is_whole(&self) -> bool {
        let masters = self.observer.masters();
        let votes = |master: &consensus::Consensus| {
            master.members().iter().filter(|member| member.voter).count() == self.options.masters
        };
        let leader = self.observer.leader().is_some();
        leader
            && masters.len() == self.options.masters
            && masters.iter().all(|(_, master)| votes(master) && master.leadership().borrow().quorum)
    }

    fn boot(&mut self) -> Result<bool> {
        let booted = self.until(BOOT_LIMIT, Self::is_whole)?;
        tracing::info!(target: "chaos", booted, "boot");
        self.workload.begun.store(true, Ordering::Relaxed);
        Ok(booted)
    }

    fn chaos(&mut self) -> Result<Chaos> {
        let start = self.sim.elapsed() + Duration::from_secs(1);
        let mut chaos = Chaos::new(self.machines.clone(), self.observer.clone(), self.options.seed, start);
        let end = start + self.options.chaos;
        while self.sim.elapsed() < end {
            self.step()?;
            let now = self.sim.elapsed();
            chaos.step(&mut self.sim, now);
        }
        Ok(chaos)
    }

    /// Takes all faults away and waits until the cluster serves, whole and equal.
    fn heal(&mut self, chaos: &mut Chaos) -> Result<Option<u64>> {
        chaos.heal(&mut self.sim);
        let (from, before) = (self.sim.elapsed(), self.observer.acknowledged());
        let healed = self.until(HEAL_LIMIT, |world| {
            world.is_whole() && world.observer.acknowledged() >= before + HEALED_WRITES
        })?;
        if healed {
            return Ok(Some(millis(self.sim.elapsed().saturating_sub(from))));
        }
        let states = self.observer.masters().into_iter().map(|(index, master)| {
            format!("m{} {:?} {:?}", index + 1, *master.leadership().borrow(), master.status())
        });
        let what = format!(
            "{HEAL_LIMIT:?} after the last fault: {} writes acknowledged; {}",
            self.observer.acknowledged() - before,
            states.collect::<Vec<_>>().join("; ")
        );
        self.observer.violation("heals", what);
        Ok(None)
    }

    /// No more calls; those under way end, and all replicas catch up.
    fn drain(&mut self) -> Result<()> {
        self.workload.ended.store(true, Ordering::Relaxed);
        self.until(DRAIN, |_| false)?;
        self.until(DRAIN, |world| {
            let masters = world.observer.masters();
            let revisions = masters.iter().map(|(_, master)| master.store().revision());
            let first = masters.first().map(|(_, master)| master.store().revision());
            revisions.into_iter().all(|revision| Some(revision) == first)
        })?;
        Ok(())
    }

    /// Replicas at one revision hold the same bytes (TigerBeetle's storage checker does the same).
    fn compare_replicas(&self) {
        let masters = self.observer.masters();
        let Some(revision) = masters.iter().map(|(_, master)| master.store().revision()).min() else { return };
        let mut first = None;
        for (index, master) in masters {
            let digest = match master.store().digest(Some(revision)) {
                Ok(digest) => digest,
                Err(error) => {
                    self.observer.violation("replicas-identical", format!("m{}: {error}", index + 1));
                    continue;
                }
            };
            let expected = *first.get_or_insert(digest);
            if digest != expected {
                let what = format!("at revision {revision} m{} has {digest:?}, another {expected:?}", index + 1);
                self.observer.violation("replicas-identical", what);
            }
        }
    }

    fn keep(&self, history: &History) -> Result<()> {
        let Some(path) = &self.options.history else { return Ok(()) };
        std::fs::write(path, serde_json::to_vec_pretty(history)?).with_context(|| path.display().to_string())
    }
}

fn outcomes(history: &History) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for operation in &history.operations {
        let name = match operation.outcome {
            Outcome::Written { .. } | Outcome::Deleted { .. } => "acknowledged",
            Outcome::Read(_) | Outcome::Listed { .. } => "read",
            Outcome::Refused(_) => "refused",
            Outcome::Unknown => "unknown",
            Outcome::NotEntered => "not-entered",
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
}
