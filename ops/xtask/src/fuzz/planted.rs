//! `cargo xtask planted`: shows that the simulation detects the bugs of
//! `chaos/KNOWN_BUGS.md`. Switches on one bug at a time and tries seeds until one fails.
//! Where `chaos/planted/` has an experiment with a bug's name, that is run, and it must
//! pass without the bug. Otherwise seeds generate the experiments.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::simulation::{RunOutcome, Simulation};

/// Simulated seconds with faults in a generated experiment.
const LENGTH: u64 = 30;
/// Every seed divisible by this has five masters instead of three.
const FIVE: u64 = 5;

/// Flags of `cargo xtask planted`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names of the bugs to try [default: all]
    #[arg(value_name = "BUG")]
    bugs: Vec<String>,
    /// The most seeds that are tried, from 1
    #[arg(long, default_value_t = 40)]
    seeds: u64,
    /// Bugs side by side
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// An `ephor-sim` built with the feature `planted`; without, one is built
    #[arg(long, value_name = "FILE")]
    sim: Option<PathBuf>,
}

/// Result of the search for a seed that shows a bug.
struct SeedSearch {
    shown_by: String,
    seeds: u64,
    simulated: Duration,
    real: Duration,
    /// The run that detected the bug; `None` when no run did.
    caught: Option<RunOutcome>,
}

/// Runs `cargo xtask planted`.
///
/// # Errors
/// Fails if a bug was not detected, or an experiment made for a bug fails without it.
pub fn run(root: &Path, args: &Args) -> Result<()> {
    let program = match &args.sim {
        Some(program) => program.clone(),
        None => build(root)?,
    };
    let all = names(&program)?;
    let unknown: Vec<&String> = args.bugs.iter().filter(|bug| !all.contains(bug)).collect();
    ensure!(unknown.is_empty(), "no planted bug is called {unknown:?}; there are {}", all.join(", "));
    let bugs = if args.bugs.is_empty() { all } else { args.bugs.clone() };
    println!("| bug | shown by | checks that failed | seeds tried | simulated | real |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<()> {
        while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let hunt = hunt(root, &program, bug, args.seeds)?;
            println!("{}", hunt.row(bug));
            if hunt.caught.is_none() {
                missed.lock().unwrap_or_else(PoisonError::into_inner).push(bug.clone());
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let hunters: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        hunters.into_iter().try_for_each(|hunter| match hunter.join() {
            Ok(result) => result,
            Err(_) => anyhow::bail!("a hunter panicked"),
        })
    })?;
    let missed = missed.into_inner().unwrap_or_else(PoisonError::into_inner);
    ensure!(missed.is_empty(), "not caught: {}", missed.join(", "));
    println!("{} of {} caught", bugs.len(), bugs.len());
    Ok(())
}

/// Builds the simulation with the planted bugs, beside the one without.
fn build(root: &Path) -> Result<PathBuf> {
    let built = super::build(root, &["--features", "chaos-sim/planted"])?;
    let kept = super::target(root).join("planted/ephor-sim");
    let directory = kept.parent().context("a file has a directory")?;
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    std::fs::copy(&built, &kept).with_context(|| kept.display().to_string())?;
    Ok(kept)
}

/// Returns the names of all planted bugs.
fn names(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program)
        .arg("--bugs")
        .output()
        .with_context(|| format!("starting {}", program.display()))?;
    ensure!(output.status.success(), "{} was built without the feature `planted`", program.display());
    Ok(String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect())
}

fn hunt(root: &Path, program: &Path, bug: &str, seeds: u64) -> Result<SeedSearch> {
    let file = root.join("chaos/planted").join(format!("{bug}.yaml"));
    let made = file.is_file();
    let begun = Instant::now();
    let shown_by = if made { format!("`chaos/planted/{bug}.yaml`") } else { "drawn".to_owned() };
    let mut hunt =
        SeedSearch { shown_by, seeds: 0, simulated: Duration::ZERO, real: Duration::ZERO, caught: None };
    for seed in 1..=seeds {
        let masters = if seed.is_multiple_of(FIVE) { 5 } else { 3 };
        let drawn = Simulation::drawn(program, seed, masters, LENGTH);
        let simulation = if made { drawn.with_file(&file) } else { drawn };
        let outcome = simulation.with_bug(bug).run()?;
        hunt.seeds = seed;
        hunt.simulated += Duration::from_micros(outcome.simulated_us);
        hunt.real = begun.elapsed();
        if outcome.failed() {
            hunt.caught = Some(outcome);
            break;
        }
    }
    if made {
        let without = Simulation::drawn(program, hunt.seeds, 3, LENGTH).with_file(&file).run()?;
        ensure!(!without.failed(), "{} fails without the bug: {:?}", file.display(), without.reasons);
    }
    Ok(hunt)
}

impl SeedSearch {
    /// Renders the bug's line of the table.
    fn row(&self, bug: &str) -> String {
        let check = match &self.caught {
            None => "**none**".to_owned(),
            // The panic message, without its path on this machine.
            Some(outcome) if outcome.verdict == "crash" => {
                let said = outcome.reasons.join(" ");
                said.split_once(" (/").map_or(said.as_str(), |(message, _)| message).replace('|', "/")
            }
            Some(outcome) => {
                let mut seen = BTreeSet::new();
                let first = |check: &&String| seen.insert((*check).clone());
                outcome.checks.iter().filter(first).cloned().collect::<Vec<_>>().join(", ")
            }
        };
        let (shown_by, seeds) = (&self.shown_by, self.seeds);
        let (simulated, real) = (self.simulated.as_secs(), self.real.as_secs());
        format!("| `{bug}` | {shown_by} | {check} | {seeds} | {simulated} s | {real} s |")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_that_nothing_sees_is_told() {
        // The program writes no report, so every run counts as a crash, which detects the bug.
        let root = Path::new("/nonexistent");
        let hunted = hunt(root, Path::new("/bin/false"), "any", 3).unwrap();
        assert_eq!((hunted.seeds, hunted.caught.is_some()), (1, true));
        let hunted = hunt(root, Path::new("/bin/false"), "any", 0).unwrap();
        assert!(hunted.row("any").contains("**none**"), "{}", hunted.row("any"));
        assert!(names(Path::new("/bin/false")).is_err());
    }
}
