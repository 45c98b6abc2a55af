//! One run of an experiment: boots the cluster, lets clients work while faults are injected, heals
//! everything, and judges. `main.rs` calls it once in a process.
//!
//! Phases: boot -> chaos -> heal (the cluster must come back by itself) -> drain -> judge

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use chaos_spec::{Experiment, Report};

use crate::checks::{Sampler, purged};
use crate::inject::Injector;
use crate::report::{self, Seen};
use crate::world::World;
use chaos_oracle as oracle;
use chaos_oracle::history::History;

/// Maximum simulated time until the cluster has booted.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// Number of writes that must be acknowledged after the last fault before the cluster counts as serving.
const HEALED_WRITES: usize = 20;
/// Simulated time for the last calls to end, longer than any call of a client.
const DRAIN: Duration = Duration::from_secs(8);
/// Maximum time until all watches reach the final revision, for near masters: a watch at a silent master goes
/// on elsewhere only after some seconds.
const CLOSE: Duration = Duration::from_secs(30);
/// Interval of the check whether the cluster is whole, for near masters.
const SAMPLE: Duration = Duration::from_millis(50);
/// Interval of the checks of all masters' state, for near masters.
const CHECK: Duration = Duration::from_millis(500);

/// Options of a run.
pub struct Options {
    /// Seed that decides everything the experiment leaves open.
    pub seed: u64,
    /// The experiment to run.
    pub experiment: Experiment,
    /// File for the history of the run; `None` to write none.
    pub history: Option<PathBuf>,
}

struct Run<'a> {
    world: World<'a>,
    options: Options,
    /// Moments at which the cluster became whole (`true`) or ceased to be whole (`false`).
    wholeness: Vec<(Duration, bool)>,
    ticks: u64,
    sampler: Sampler,
}

/// Runs the experiment; what went wrong in the cluster is in the report.
///
/// # Errors
/// Fails if the simulation itself cannot go on.
pub fn run(options: Options) -> Result<Report> {
    let world = World::new(&options.experiment, options.seed)?;
    let mut run = Run { world, options, wholeness: Vec::new(), ticks: 0, sampler: Sampler::default() };
    let booted = run.until(BOOT_LIMIT, |world| world.is_whole())?;
    tracing::info!(target: "chaos", booted, "boot");
    let origin = run.world.elapsed();
    let mut injector = run.injector(origin);
    run.world.begin_load();
    if booted {
        let end = origin + run.options.experiment.spec.duration;
        while run.world.elapsed() < end {
            run.step()?;
            injector.step(&mut run.world);
        }
        run.heal(&mut injector)?;
    } else {
        run.world.observer.violation("boots", format!("no cluster after {BOOT_LIMIT:?}"));
    }
    run.drain()?;
    run.close()?;
    // The final states are read as of one moment.
    run.until_equal()?;
    run.compare_replicas();
    run.measure_logs();
    let members = run.world.members();
    run.world.observer.read_finals(&members);
    let (history, mut violations) = run.world.observer.take();
    violations.extend(oracle::check(&history));
    run.keep(&history)?;
    let seen = Seen {
        history: &history,
        violations,
        leaders: run.world.observer.leaders(),
        wholeness: run.wholeness,
        origin,
        ended: run.world.elapsed(),
    };
    Ok(report::build(&run.options.experiment, run.options.seed, injector.records(), seen))
}

impl Run<'_> {
    fn injector(&self, origin: Duration) -> Injector {
        let spec = &self.options.experiment.spec;
        Injector::new(&spec.schedule, spec.duration, self.options.seed, origin)
    }

    fn step(&mut self) -> Result<()> {
        self.world.step()?;
        self.ticks += 1;
        if self.ticks.is_multiple_of(self.world.scale.ticks(CHECK)) {
            self.sampler.sample(&self.world.observer);
        }
        if self.ticks.is_multiple_of(self.world.scale.ticks(SAMPLE)) {
            let whole = self.world.is_whole();
            if self.wholeness.last().is_none_or(|(_, before)| *before != whole) {
                self.wholeness.push((self.world.elapsed(), whole));
            }
        }
        Ok(())
    }

    /// Steps until `done` returns true, for at most `limit`; returns whether `done` did.
    fn until(&mut self, limit: Duration, mut done: impl FnMut(&World<'_>) -> bool) -> Result<bool> {
        let end = self.world.elapsed() + limit;
        while !done(&self.world) {
            if self.world.elapsed() >= end {
                return Ok(false);
            }
            self.step()?;
        }
        Ok(true)
    }

    /// Ends all faults and waits until the cluster is whole and serves again.
    fn heal(&mut self, injector: &mut Injector) -> Result<()> {
        injector.heal(&mut self.world);
        self.world.mark_healed();
        let limit = self.options.experiment.spec.recover_within;
        let before = self.world.observer.acknowledged();
        let healed = self.until(limit, |world| {
            world.is_whole() && world.observer.acknowledged() >= before + HEALED_WRITES && world.serves()
        })?;
        if healed {
            return Ok(());
        }
        let masters = self.world.observer.masters();
        let states = masters.iter().map(|(node, master)| {
            format!("{node} {:?} {:?}", *master.leadership().borrow(), master.status())
        });
        let what = format!(
            "{limit:?} after the last fault: {} writes acknowledged; {} of {} pods run; members {:?}; {}",
            self.world.observer.acknowledged() - before,
            self.world.pods_beside(&BTreeSet::new()),
            self.world.pods_wanted(),
            self.world.members().iter().map(ToString::to_string).collect::<Vec<_>>(),
            states.collect::<Vec<_>>().join("; ")
        );
        self.world.observer.violation("heals", what);
        Ok(())
    }

    /// Stops new calls, and waits until those under way have ended and all replicas have caught up.
    fn drain(&mut self) -> Result<()> {
        self.world.end_load();
        self.until(DRAIN, |_| false)?;
        self.until_equal()
    }

    /// Waits until all replicas are at one revision. Masters write now and then without clients.
    fn until_equal(&mut self) -> Result<()> {
        self.until(DRAIN, |world| {
            let masters = world.observer.masters();
            let first = masters.first().map(|(_, master)| master.store().revision());
            masters.iter().all(|(_, master)| Some(master.store().revision()) == first)
        })?;
        Ok(())
    }

    /// Waits until every watch, also those that are in progress, has reached the revision of all replicas.
    fn close(&mut self) -> Result<()> {
        let masters = self.world.observer.masters();
        let Some(revision) = masters.iter().map(|(_, master)| master.store().revision()).min() else {
            return Ok(());
        };
        drop(masters);
        self.world.observer.close(revision);
        let limit = self.world.scale.stretch(CLOSE);
        self.until(limit, |world| world.observer.is_closed())?;
        Ok(())
    }

    /// Checks that replicas at the same revision hold the same bytes (as TigerBeetle's storage checker does).
    fn compare_replicas(&self) {
        let observer = &self.world.observer;
        let members = self.world.members();
        let masters: Vec<_> =
            observer.masters().into_iter().filter(|(node, _)| members.contains(node)).collect();
        let Some(revision) = masters.iter().map(|(_, master)| master.store().revision()).min() else {
            return;
        };
        let mut first = None;
        for (node, master) in masters {
            match master.store().digest(Some(revision)) {
                Ok(digest) => {
                    let expected = *first.get_or_insert(digest);
                    if digest != expected {
                        let what =
                            format!("at revision {revision} {node} has {digest:?}, another {expected:?}");
                        observer.violation("replicas-identical", what);
                    }
                }
                Err(error) => observer.violation("replicas-identical", format!("{node}: {error}")),
            }
        }
    }

    /// Checks that the members' logs were purged.
    fn measure_logs(&self) {
        let observer = &self.world.observer;
        let members = self.world.members();
        let cluster = &self.options.experiment.spec.cluster;
        let count = cluster.snapshot_count.unwrap_or(consensus::DEFAULT_SNAPSHOT_COUNT);
        for (node, master) in observer.masters().into_iter().filter(|(node, _)| members.contains(node)) {
            let records = master.log_records(0).unwrap_or_default();
            let ends = records.first().zip(records.last());
            let found = ends.and_then(|(first, last)| purged::check(first.index, last.index, count));
            found.into_iter().for_each(|what| observer.violation(purged::CHECK, format!("{node} {what}")));
        }
    }

    fn keep(&self, history: &History) -> Result<()> {
        let Some(path) = &self.options.history else { return Ok(()) };
        std::fs::write(path, serde_json::to_vec_pretty(history)?).with_context(|| path.display().to_string())
    }
}
