//! Shrinks a failed experiment: leaves out faults, one after the other,
//! as long as the same check still fails, and keeps the rest as a file.
//! Delta debugging (Zeller and Hildebrandt 2002) in its simplest form.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_norway::Value;

use super::simulation::{RunOutcome, Simulation};

/// Shrinks the experiment of `drawn`, which failed with `worst`; returns the file of the smallest
/// experiment that fails in the same way.
///
/// # Errors
/// Fails if a file cannot be written, or `ephor-sim` cannot be started.
pub fn shrink(drawn: Simulation, worst: &RunOutcome, keep: &Path) -> Result<PathBuf> {
    let file = keep.join(format!("seed-{}.yaml", worst.seed));
    let again = drawn.with_file(&file);
    let first = drawn.with_plan(&file).run()?;
    if !fails_alike(&first, worst) {
        println!("the seed did not fail like this again; its experiment is kept whole");
        return Ok(file);
    }
    let mut smallest = read(&file)?;
    let trial = keep.join(format!("seed-{}.trial.yaml", worst.seed));
    let mut at = 0;
    while at < schedule(&mut smallest).map_or(0, |entries| entries.len()) {
        let mut smaller = smallest.clone();
        if let Some(entries) = schedule(&mut smaller) {
            entries.remove(at);
        }
        write(&trial, &smaller)?;
        let outcome = again.with_file(&trial).run()?;
        if fails_alike(&outcome, worst) {
            smallest = smaller;
        } else {
            at += 1;
        }
        println!("shrinking: {} faults left", schedule(&mut smallest).map_or(0, |entries| entries.len()));
    }
    write(&file, &smallest)?;
    let _ = std::fs::remove_file(&trial);
    Ok(file)
}

fn fails_alike(outcome: &RunOutcome, worst: &RunOutcome) -> bool {
    outcome.failed() && outcome.checks.iter().any(|check| worst.checks.contains(check))
}

fn schedule(experiment: &mut Value) -> Option<&mut Vec<Value>> {
    experiment.get_mut("spec")?.get_mut("schedule")?.as_sequence_mut()
}

fn read(file: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    serde_norway::from_str(&text).with_context(|| file.display().to_string())
}

fn write(file: &Path, experiment: &Value) -> Result<()> {
    let text = serde_norway::to_string(experiment)?;
    std::fs::write(file, text).with_context(|| file.display().to_string())
}
