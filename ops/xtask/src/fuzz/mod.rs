//! `cargo xtask fuzz`: runs `ephor-sim` for one seed after the other, each in a
//! process of its own, and sums up the results. The experiment of a seed that fails
//! is shrunk (`shrink.rs`) and kept as a file.

pub mod planted;
mod shrink;
mod simulation;
mod tally;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use self::simulation::{RunOutcome, Simulation};
use self::tally::Tally;

/// Numbers of masters in the generated clusters, used in turn.
const SIZES: [u32; 6] = [3, 5, 3, 7, 3, 1];
/// Length of a calm run as a multiple of a busy one's: an hour for a minute.
const CALM_LENGTHS: u64 = 60;
/// Interval at which progress is printed.
const PROGRESS: Duration = Duration::from_secs(15);

/// Flags of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// First seed [default: from the clock, printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Number of seeds to run
    #[arg(long, default_value_t = 20)]
    runs: u64,
    /// Duration of the run, such as 30m, instead of a number of seeds
    #[arg(long = "for", value_parser = duration, conflicts_with = "runs")]
    time: Option<Duration>,
    /// Run seeds until one fails
    #[arg(long, conflicts_with_all = ["runs", "time"])]
    until_failure: bool,
    /// Number of masters in each cluster [default: 1, 3, 5 and 7 in turn]
    #[arg(long)]
    masters: Option<u32>,
    /// Simulated time in which things go wrong in a busy run, in seconds; a calm one is sixty times as long
    #[arg(long, default_value_t = 60)]
    length: u64,
    /// Pace of all runs [default: busy and calm in turn]
    #[arg(long, value_enum)]
    pace: Option<Pace>,
    /// Simulations side by side
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Run every seed twice, and fail where the two traces differ
    #[arg(long)]
    double: bool,
    /// A built `ephor-sim`; without, an optimized one with assertions is built
    #[arg(long, value_name = "FILE")]
    sim: Option<PathBuf>,
    /// Directory to which the experiments and reports of failed seeds are written
    #[arg(long, value_name = "DIR", default_value = "target/fuzz")]
    keep: PathBuf,
}

/// Rate of faults and requests in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Pace {
    /// Masters side by side, many calls, faults on each other's heels
    Busy,
    /// Masters far apart, few calls, faults half a minute apart
    Calm,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no duration such as 30m"))?;
    let seconds = match unit {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("{unit:?} is no unit: write s, m or h")),
    };
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| format!("{text} is too long"))
}

/// State that the worker threads share.
struct Queue {
    next: u64,
    end: Option<u64>,
    failed: VecDeque<RunOutcome>,
    tally: Tally,
    printed: Instant,
}

struct Fuzz {
    args: Args,
    program: PathBuf,
    begun: Instant,
    queue: Mutex<Queue>,
}

/// Runs `cargo xtask fuzz`.
///
/// # Errors
/// Fails if a seed failed, whose experiment and report are kept, or if too many runs decided nothing.
pub fn run(root: &Path, args: Args) -> Result<()> {
    let program = match &args.sim {
        Some(program) => program.clone(),
        None => build(root, &[])?,
    };
    ensure!(program.is_file(), "{} is not there: build it, or leave --sim out", program.display());
    let first = args.seed.unwrap_or_else(seed_of_the_clock);
    println!("seeds from {first}: `cargo xtask fuzz --seed {first}` repeats them");
    std::fs::create_dir_all(&args.keep).with_context(|| args.keep.display().to_string())?;
    let end = (args.time.is_none() && !args.until_failure).then(|| first + args.runs);
    let now = Instant::now();
    let queue = Queue { next: first, end, failed: VecDeque::new(), tally: Tally::default(), printed: now };
    let jobs = args.jobs.max(1);
    let fuzz = Fuzz { args, program, begun: now, queue: Mutex::new(queue) };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(|| fuzz.work())).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(_) => bail!("a worker panicked"),
        })
    })?;
    fuzz.finish()
}

/// Builds `ephor-sim` optimized, with the assertions that planted or real bugs violate.
fn build(root: &Path, features: &[&str]) -> Result<PathBuf> {
    println!("building ephor-sim");
    let mut cargo = Command::new(env!("CARGO"));
    // Remove the variables that cargo sets for xtask: ring's build script would take them for a change and
    // half of all crates be rebuilt.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    if let Some(commit) = commit(root) {
        cargo.env("EPHOR_COMMIT", commit);
    }
    let built = cargo
        .current_dir(root)
        .args(["build", "--locked", "--profile", "simulation", "--workspace", "--bin", "ephor-sim"])
        .args(features)
        .status()
        .context("starting cargo")?;
    ensure!(built.success(), "ephor-sim does not build");
    Ok(target(root).join("simulation/ephor-sim"))
}

/// Returns cargo's target directory.
fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |target| root.join(target))
}

/// Returns the commit that reports name, in the form of `commit` in `ops/lib.sh`.
fn commit(root: &Path) -> Option<String> {
    let git = ["describe", "--always", "--dirty", "--exclude", "*", "--abbrev=12"];
    let output = Command::new("git").current_dir(root).args(git).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn seed_of_the_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs())
}

impl Fuzz {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the next seed; `None` when the number of runs or the time is used up.
    fn next(&self) -> Option<u64> {
        let mut queue = self.lock();
        let over = match (self.args.time, queue.end) {
            (Some(time), _) => self.begun.elapsed() >= time,
            (None, Some(end)) => queue.next >= end,
            (None, None) => false,
        };
        if over || !queue.failed.is_empty() {
            return None;
        }
        queue.next += 1;
        Some(queue.next - 1)
    }

    /// Returns the simulation of a seed: its number of masters and its pace.
    fn simulation(&self, seed: u64) -> Simulation {
        let args = &self.args;
        let masters = args.masters.unwrap_or(SIZES[(seed / 2 % SIZES.len() as u64) as usize]);
        let in_turn = if seed.is_multiple_of(2) { Pace::Calm } else { Pace::Busy };
        match args.pace.unwrap_or(in_turn) {
            Pace::Busy => Simulation::drawn(&self.program, seed, masters, args.length),
            Pace::Calm => Simulation::drawn(&self.program, seed, masters, args.length * CALM_LENGTHS).calm(),
        }
    }

    fn work(&self) -> Result<()> {
        while let Some(seed) = self.next() {
            let simulation = self.simulation(seed);
            let mut outcome = simulation.run()?;
            if self.args.double {
                let again = simulation.run()?;
                outcome.compare(&again);
            }
            let mut queue = self.lock();
            queue.tally.add(&outcome);
            if outcome.verdict == "unknown" {
                println!(
                    "seed {seed} with {} masters is unknown: {}",
                    outcome.masters,
                    outcome.reasons.join("; ")
                );
            }
            if outcome.failed() {
                let reasons = outcome.reasons.join("; ");
                println!("seed {seed} with {} masters FAILS: {reasons}", outcome.masters);
                queue.failed.push_back(outcome);
            }
            if queue.printed.elapsed() >= PROGRESS {
                queue.printed = Instant::now();
                println!("{}", queue.tally.line(self.begun.elapsed()));
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        let elapsed = self.begun.elapsed();
        let queue = self.lock();
        println!("{}", queue.tally.summary(elapsed));
        let Some(worst) = queue.failed.front() else {
            let undecided = queue.tally.undecided();
            return undecided.map_or(Ok(()), |why| bail!("not green, though nothing failed: {why}"));
        };
        let file = shrink::shrink(self.simulation(worst.seed), worst, &self.args.keep)?;
        bail!(
            "seed {} failed; what is left of it: {} (run `ephor-sim --seed {} --experiment {}`)",
            worst.seed,
            worst.reasons.join("; "),
            worst.seed,
            file.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        assert_eq!(duration("30m"), Ok(Duration::from_secs(1800)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(duration("45"), Ok(Duration::from_secs(45)));
        assert!(duration("m").is_err());
        assert!(duration("5d").is_err());
    }
}
