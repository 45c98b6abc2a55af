//! Sums over all runs of a fuzzer. `mod.rs` adds to it and prints it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::simulation::Outcome;

/// What all runs came to.
#[derive(Default)]
pub struct Tally {
    runs: BTreeMap<String, u64>,
    simulated_us: u64,
    faults: BTreeMap<String, u64>,
    idle: u64,
    operations: BTreeMap<String, u64>,
    elections: u64,
}

impl Tally {
    /// Adds a run.
    pub fn add(&mut self, outcome: &Outcome) {
        *self.runs.entry(outcome.verdict.clone()).or_default() += 1;
        self.simulated_us += outcome.simulated_us;
        self.idle += outcome.idle;
        self.elections += outcome.elections;
        for (sum, part) in [(&mut self.faults, &outcome.faults), (&mut self.operations, &outcome.operations)]
        {
            for (name, count) in part {
                *sum.entry(name.clone()).or_default() += count;
            }
        }
    }

    /// One line of progress.
    pub fn line(&self, real: Duration) -> String {
        let runs: u64 = self.runs.values().sum();
        let faults: u64 = self.faults.values().sum();
        format!(
            "{:>5}s  {runs} runs {:?}, {:.2} simulated hours ({:.0}x), {faults} faults, {} elections",
            real.as_secs(),
            self.runs,
            self.hours(),
            self.speed(real),
            self.elections
        )
    }

    /// All of it.
    pub fn summary(&self, real: Duration) -> String {
        let names = |counts: &BTreeMap<String, u64>| {
            counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        format!(
            "{}\nfaults fired  {}; {} scheduled ones never fired\noperations    {}",
            self.line(real),
            names(&self.faults),
            self.idle,
            names(&self.operations)
        )
    }

    fn hours(&self) -> f64 {
        self.simulated_us as f64 / 3.6e9
    }

    /// Simulated seconds for each real one.
    fn speed(&self, real: Duration) -> f64 {
        self.simulated_us as f64 / 1e6 / real.as_secs_f64().max(0.001)
    }
}
