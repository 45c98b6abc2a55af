//! Draws an experiment from a seed, for the fuzzer. The result is the same type as a file of
//! `chaos/experiments`, so a failed experiment can be saved as a file, shrunk and run again. `main.rs` calls
//! it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use chaos_spec::experiment::{Cluster, Distance, Entry, Metadata, Mix, Spec, Workload};
use chaos_spec::fault::{
    Clock, ClockChange, Cut, Disk, DiskKind, Fault, Hold, Lose, Member, Replace, Shape, Slow, Strike, Worker,
    WorkerKind,
};
use chaos_spec::units::{Offset, Percent};
use chaos_spec::{Experiment, Invariant, NodeName, Target};
use rand::Rng;
use rand::rngs::StdRng;

use crate::seams::random::generator;

/// Maximum number of masters that join in one run after the first ones.
const REPLACEMENTS_MAX: u32 = 2;
/// Maximum of operations per object: the linearizability search grows fast with an object's unknown outcomes.
const OPERATIONS_PER_KEY: u64 = 150;

/// Minimum time between the begin of the last fault and the end, so that the fault finds a node to strike.
const MARGIN: Duration = Duration::from_secs(5);

/// How densely calls and faults follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Masters near each other, many calls, faults in quick succession.
    Busy,
    /// Masters far apart, a few calls a second, faults about half a minute apart: for long runs, in which
    /// history is compacted, events expire and watches grow old.
    Calm,
}

impl Pace {
    fn rate(self, random: &mut StdRng) -> u32 {
        match self {
            Self::Busy => random.random_range(20..120),
            Self::Calm => random.random_range(2..6),
        }
    }

    fn distance(self) -> Distance {
        match self {
            Self::Busy => Distance::Near,
            Self::Calm => Distance::Far,
        }
    }

    /// Draws the number of log entries between two snapshots: a run has some ten thousand entries, and the
    /// default would never purge them.
    fn snapshot_count(self, random: &mut StdRng) -> Option<u64> {
        let drawn = match self {
            Self::Busy => [None, Some(50), Some(200), Some(1_000)],
            Self::Calm => [None, Some(50), Some(500), Some(2_000)],
        };
        drawn[random.random_range(0..drawn.len())]
    }

    /// Factor by which faults and the pauses between them are longer than in a busy run.
    fn stretch(self) -> u32 {
        match self {
            Self::Busy => 1,
            Self::Calm => 10,
        }
    }
}

/// Draws an experiment for a cluster of `masters` masters that lasts `duration`.
///
/// # Errors
/// Fails if the drawn experiment is not valid, which is a bug in this file.
pub fn random(seed: u64, masters: u32, duration: Duration, pace: Pace) -> Result<Experiment> {
    let mut random = generator(seed, 1);
    let rate = pace.rate(&mut random);
    let spec = Spec {
        cluster: Cluster {
            masters,
            workers: if random.random_bool(0.25) { 2 } else { 0 },
            distance: pace.distance(),
            snapshot_count: pace.snapshot_count(&mut random),
        },
        steady_state: Vec::new(),
        workload: Workload {
            clients: random.random_range(2..6),
            rate,
            keys: keys(rate, duration),
            mix: Mix {
                create: 4,
                update: 7,
                delete: 2,
                get: 6,
                list: 1,
                watch: 1,
                patch: 1,
                page: 1,
                any_version: 1,
            },
        },
        schedule: Vec::new(),
        invariants: Invariant::ALL.to_vec(),
        recover_within: Duration::from_secs(60),
        bounds: Default::default(),
        abort_if: Default::default(),
        duration,
    };
    let (api_version, kind) = Default::default();
    let metadata = Metadata { name: format!("seed-{seed}") };
    let mut experiment = Experiment { api_version, kind, metadata, spec };
    schedule(&mut random, &mut experiment, pace.stretch());
    experiment.check().map_err(anyhow::Error::new).context("a drawn experiment")?;
    Ok(experiment)
}

/// Returns the number of objects with which each object's history stays short enough to be decided.
fn keys(rate: u32, duration: Duration) -> u32 {
    let operations = u64::from(rate) * duration.as_secs();
    u32::try_from(operations / OPERATIONS_PER_KEY).unwrap_or(u32::MAX).max(2)
}

/// Draws faults one after the other, often overlapping; leaves out those that an experiment's rules forbid
/// together.
fn schedule(random: &mut StdRng, experiment: &mut Experiment, stretch: u32) {
    let (masters, duration) = (experiment.spec.cluster.masters, experiment.spec.duration);
    let mut at = Duration::from_secs(1);
    let mut replaced = BTreeSet::new();
    let mut damaged = false;
    while at + MARGIN < duration {
        let mut lasts = (Duration::from_millis(random.random_range(200..6000)) * stretch).min(duration - at);
        let fault = match random.random_range(0..12) {
            0 if experiment.spec.cluster.workers > 0 => {
                // Pods are evicted after nine seconds at the earliest.
                let longest = if stretch > 1 { 75_000 } else { 25_000 };
                lasts = Duration::from_millis(random.random_range(1000..longest)).min(duration - at);
                Some(worker(random))
            }
            1 => {
                // Half of the pauses are short, as when the processor does something else.
                if random.random_bool(0.5) {
                    lasts =
                        (Duration::from_millis(random.random_range(50..400)) * stretch).min(duration - at);
                }
                Some(pause(random, masters))
            }
            _ => fault(random, masters, &mut replaced, &mut damaged),
        };
        if let Some(fault) = fault {
            let lasts = (!fault.is_instant()).then_some(lasts);
            experiment.spec.schedule.push(Entry { at, lasts, fault });
            if experiment.check().is_err() {
                experiment.spec.schedule.pop();
            }
        }
        at += Duration::from_millis(random.random_range(100..5000)) * stretch;
    }
}

fn fault(
    random: &mut StdRng,
    masters: u32,
    replaced: &mut BTreeSet<u32>,
    damaged: &mut bool,
) -> Option<Fault> {
    let several = masters >= 3;
    let target = match random.random_range(0..10) {
        0..4 => Target::Leader,
        4..7 => Target::Follower,
        _ => Target::Any,
    };
    let target = if several { target } else { Target::Leader };
    let some_or_all = |random: &mut StdRng, target: Target| match random.random_range(0..6) {
        0 => Target::All,
        1 if several => Target::Majority,
        _ => target,
    };
    let strike = |target| Strike { target };
    let drawn = random.random_range(0..100);
    Some(match drawn {
        0..22 if several => Fault::Cut(cut(random, masters)),
        22..34 if several => disturbance(random)?,
        34..52 => Fault::Kill(strike(some_or_all(random, target))),
        52..72 => Fault::Powerloss(strike(some_or_all(random, target))),
        72..80 => {
            let kind = match random.random_range(0..6) {
                0..2 => DiskKind::Eio,
                2..4 => DiskKind::Enospc,
                4 => DiskKind::SlowFsync { delay: Duration::from_millis(random.random_range(20..800)) },
                // At most one disk is damaged: if a majority were, acknowledged writes could be gone.
                _ if several && !std::mem::replace(damaged, true) => DiskKind::Bitflip,
                _ => return None,
            };
            Fault::Disk(Disk { target, kind })
        }
        80..86 => {
            let by = Duration::from_millis(random.random_range(100..600_000));
            let offset = if random.random_bool(0.5) { Offset::ahead(by)? } else { Offset::behind(by)? };
            let jumps = random.random_bool(0.3);
            let change = if jumps { ClockChange::Jump(offset) } else { ClockChange::Skew(offset) };
            Fault::Clock(Clock { target, change })
        }
        86..94 if several => Fault::Member(Member::TransferLeader(Target::Follower)),
        94..98 if several => replacement(random, masters, replaced)?,
        _ => return None,
    })
}

/// Draws a pause of one or more masters, most often of the leader.
fn pause(random: &mut StdRng, masters: u32) -> Fault {
    let target = match random.random_range(0..8) {
        0 => Target::All,
        1 if masters >= 3 => Target::Majority,
        2..4 if masters >= 3 => Target::Follower,
        _ => Target::Leader,
    };
    Fault::Pause(Strike { target })
}

fn worker(random: &mut StdRng) -> Fault {
    let kinds = [WorkerKind::Kill, WorkerKind::Cut, WorkerKind::Pause];
    let kind = kinds[random.random_range(0..kinds.len())];
    Fault::Worker(Worker { target: Target::Any, kind })
}

fn cut(random: &mut StdRng, masters: u32) -> Cut {
    let one_way = random.random_bool(0.5);
    match random.random_range(0..8) {
        0 => Cut::Shape(Shape::LeaderAlone),
        1 => Cut::Shape(Shape::Minority),
        2 => Cut::Shape(Shape::Majority),
        3 if masters >= 5 => Cut::Shape(Shape::Ring),
        4 => Cut::Links { from: Target::All, to: Target::Leader, one_way },
        5 => Cut::Links { from: Target::Follower, to: Target::All, one_way },
        6 => Cut::Links { from: Target::Minority, to: Target::Majority, one_way },
        _ => Cut::Links { from: Target::Leader, to: Target::Follower, one_way },
    }
}

fn disturbance(random: &mut StdRng) -> Option<Fault> {
    let (from, to, one_way) = (Target::Leader, Target::Follower, random.random_bool(0.5));
    Some(match random.random_range(0..3) {
        0 => {
            let latency = Duration::from_millis(random.random_range(20..800));
            let jitter = random.random_bool(0.3).then_some(latency / 2);
            Fault::Slow(Slow { from, to, one_way, latency, jitter })
        }
        1 => {
            let percent = Percent::from_hundredths(random.random_range(100..3000))?;
            Fault::Lose(Lose { from, to: Target::All, one_way, percent })
        }
        _ => Fault::Hold(Hold { from, to, one_way }),
    })
}

/// Draws the replacement of a master that was there from the beginning by a new one; `None` if that is not
/// allowed.
fn replacement(random: &mut StdRng, masters: u32, replaced: &mut BTreeSet<u32>) -> Option<Fault> {
    let count = u32::try_from(replaced.len()).unwrap_or(u32::MAX);
    let old = random.random_range(1..=masters);
    if count >= REPLACEMENTS_MAX || !replaced.insert(old) {
        return None;
    }
    let old = Target::node(NodeName::master(old)?);
    Some(Fault::Member(Member::Replace(Replace { old, new: NodeName::master(masters + count + 1)? })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_is_valid_and_reads_back_from_its_file() {
        for seed in 0..300 {
            let masters = [1, 3, 5, 7][usize::try_from(seed % 4).unwrap()];
            let drawn = random(seed, masters, Duration::from_secs(60), Pace::Busy).unwrap();
            assert_eq!(Experiment::parse(&drawn.to_yaml().unwrap()).unwrap(), drawn, "seed {seed}");
        }
    }

    #[test]
    fn every_kind_of_fault_that_is_drawn_comes_up() {
        let kinds: BTreeSet<_> = (0..300)
            .flat_map(|seed| random(seed, 5, Duration::from_secs(60), Pace::Busy).unwrap().spec.schedule)
            .map(|entry| entry.fault.kind().name())
            .collect();
        for kind in [
            "cut-ring",
            "cut-one-way",
            "powerloss",
            "member-replace",
            "clock-jump",
            "hold",
            "disk-eio",
            "disk-slow-fsync",
            "disk-bitflip",
            "worker-kill",
            "pause",
        ] {
            assert!(kinds.contains(kind), "{kind} is not in {kinds:?}");
        }
    }
}
