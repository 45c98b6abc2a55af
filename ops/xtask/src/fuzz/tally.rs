//! Sums over all runs of a fuzzer. `mod.rs` adds runs and prints the sums.

use std::collections::BTreeMap;
use std::time::Duration;

use super::simulation::RunOutcome;

/// Divisor of the number of runs that gives how many of them may be unknown.
const UNKNOWN_SHARE: u64 = 10;

/// Sums over the results of all runs.
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
    /// Adds the result of a run.
    pub fn add(&mut self, outcome: &RunOutcome) {
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

    /// Returns why the runs together prove too little; `None` when they prove enough. A run is undecided
    /// now and then, when a fault finds no target; more than one run in ten, or all of them, means that
    /// something is wrong.
    pub fn undecided(&self) -> Option<String> {
        let of = |verdict: &str| self.runs.get(verdict).copied().unwrap_or_default();
        let (passed, unknown, all) = (of("pass"), of("unknown"), self.runs.values().sum::<u64>());
        if passed == 0 {
            return Some(format!("no run passed: {unknown} of {all} are unknown"));
        }
        let allowed = (all / UNKNOWN_SHARE).max(1);
        (unknown > allowed).then(|| format!("{unknown} of {all} runs are unknown, more than {allowed}"))
    }

    /// Renders one line of progress.
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

    /// Renders the whole summary.
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

    /// Simulated seconds per real second.
    fn speed(&self, real: Duration) -> f64 {
        self.simulated_us as f64 / 1e6 / real.as_secs_f64().max(0.001)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(runs: &[(&str, u64)]) -> Option<String> {
        let runs = runs.iter().map(|(verdict, count)| ((*verdict).to_owned(), *count)).collect();
        Tally { runs, ..Tally::default() }.undecided()
    }

    #[test]
    fn runs_that_decide_nothing_are_not_green() {
        assert_eq!(of(&[("pass", 4)]), None);
        assert_eq!(of(&[("pass", 1), ("unknown", 1)]), None);
        assert_eq!(of(&[("pass", 141), ("unknown", 4)]), None);
        assert_eq!(of(&[("unknown", 1)]).unwrap(), "no run passed: 1 of 1 are unknown");
        assert_eq!(of(&[]).unwrap(), "no run passed: 0 of 0 are unknown");
        assert_eq!(of(&[("pass", 2), ("unknown", 2)]).unwrap(), "2 of 4 runs are unknown, more than 1");
        assert_eq!(of(&[("pass", 80), ("unknown", 10)]).unwrap(), "10 of 90 runs are unknown, more than 9");
    }
}
