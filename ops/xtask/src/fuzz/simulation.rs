//! Runs `ephor-sim` as a process and reads its report. `mod.rs` runs it for each seed,
//! `shrink.rs` for each smaller experiment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

/// A run of `ephor-sim`: the program and its arguments.
pub struct Simulation {
    program: PathBuf,
    seed: u64,
    masters: u32,
    arguments: Vec<OsString>,
}

/// Result of a run.
pub struct RunOutcome {
    /// Seed of the run.
    pub seed: u64,
    /// Number of masters in the simulated cluster.
    pub masters: u32,
    /// `pass`, `fail`, `unknown`, or `crash` when the program wrote no report.
    pub verdict: String,
    /// Reasons why the run did not pass, one line each.
    pub reasons: Vec<String>,
    /// Names of the checks that were violated.
    pub checks: Vec<String>,
    /// Simulated time in microseconds.
    pub simulated_us: u64,
    /// Number of faults that fired, by kind.
    pub faults: BTreeMap<String, u64>,
    /// Number of faults that were scheduled and never fired.
    pub idle: u64,
    /// Number of operations, by outcome.
    pub operations: BTreeMap<String, u64>,
    /// Number of leaders elected.
    pub elections: u64,
    /// Hash of the trace; two runs of the same seed must have the same one.
    pub trace: String,
}

impl Simulation {
    /// A run of the experiment that the seed generates.
    pub fn drawn(program: &Path, seed: u64, masters: u32, length: u64) -> Self {
        let arguments =
            ["--masters".into(), masters.to_string().into(), "--for".into(), format!("{length}s").into()];
        Self { program: program.to_owned(), seed, masters, arguments: arguments.to_vec() }
    }

    /// Makes the run calm: masters far apart, few calls and faults.
    pub fn calm(mut self) -> Self {
        self.arguments.push("--calm".into());
        self
    }

    /// Returns a simulation of the same seed that runs an experiment file instead of a generated experiment.
    pub fn with_file(&self, file: &Path) -> Self {
        Self::of_file(&self.program, self.seed, self.masters, file)
    }

    /// A run of an experiment file.
    fn of_file(program: &Path, seed: u64, masters: u32, file: &Path) -> Self {
        let arguments = vec!["--experiment".into(), file.as_os_str().to_owned()];
        Self { program: program.to_owned(), seed, masters, arguments }
    }

    /// Makes the run also write its experiment to `file`.
    pub fn with_plan(mut self, file: &Path) -> Self {
        self.arguments.extend(["--plan".into(), file.as_os_str().to_owned()]);
        self
    }

    /// Makes the run with a planted bug switched on.
    pub fn with_bug(mut self, bug: &str) -> Self {
        self.arguments.extend(["--bug".into(), bug.into()]);
        self
    }

    /// Runs the simulation to its end and reads its report.
    ///
    /// # Errors
    /// Fails if the program cannot be started.
    pub fn run(&self) -> Result<RunOutcome> {
        let output = Command::new(&self.program)
            .args(["--output", "json", "--seed", &self.seed.to_string()])
            .args(&self.arguments)
            .env_remove("RUST_LOG")
            .output()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let journal: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        Ok(match journal {
            Some(journal) => self.outcome(&journal["ephor"]),
            None => {
                let said = String::from_utf8_lossy(&output.stderr);
                RunOutcome {
                    verdict: "crash".to_owned(),
                    reasons: vec![last_words(&said)],
                    checks: vec!["crash".to_owned()],
                    ..self.outcome(&Value::Null)
                }
            }
        })
    }

    fn outcome(&self, report: &Value) -> RunOutcome {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let mut faults = BTreeMap::new();
        let mut idle = 0;
        for fault in report["faults"].as_array().into_iter().flatten() {
            let fired = number(&fault["fired"]);
            *faults.entry(text(&fault["kind"])).or_insert(0) += u64::from(fired > 0);
            idle += u64::from(fired == 0);
        }
        let operations = report["operations"].as_object().into_iter().flatten();
        let violations = report["violations"].as_array().into_iter().flatten();
        let reasons = report["verdict"]["reasons"].as_array().into_iter().flatten();
        RunOutcome {
            seed: self.seed,
            masters: self.masters,
            verdict: text(&report["verdict"]["outcome"]),
            reasons: reasons.map(ToString::to_string).collect(),
            checks: violations.map(|violation| text(&violation["check"])).collect(),
            simulated_us: number(&report["endedUs"]),
            faults,
            idle,
            operations: operations.map(|(name, count)| (name.clone(), number(count))).collect(),
            elections: number(&report["elections"]),
            trace: text(&report["trace"]),
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl RunOutcome {
    /// Whether a check was violated or the program crashed.
    pub fn failed(&self) -> bool {
        matches!(self.verdict.as_str(), "fail" | "crash")
    }

    /// Marks the run as failed when another run of the same seed left another trace.
    pub fn compare(&mut self, again: &Self) {
        if self.trace != again.trace {
            self.verdict = "fail".to_owned();
            self.checks.push("repeatable".to_owned());
            self.reasons.push(format!("two runs left two traces: {} and {}", self.trace, again.trace));
        }
    }
}

/// Returns why a program died: message and place of its first panic, or its last lines.
fn last_words(said: &str) -> String {
    let mut lines = said.lines();
    // The standard library's panic hook writes "thread 'main' panicked at FILE:LINE:COLUMN:", then the
    // message.
    let place = lines.find_map(|line| line.split_once(" panicked at ").map(|(_, place)| place));
    match (place, lines.next()) {
        (Some(place), Some(message)) => format!("panic: {message} ({})", place.trim_end_matches(':')),
        _ => {
            let last: Vec<&str> = said.lines().rev().take(4).collect();
            last.into_iter().rev().collect::<Vec<_>>().join(" | ")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_read_for_what_counts() {
        let report = json!({
            "verdict": {"outcome": "unknown", "reasons": [{"neverFired": "kill leader"}]},
            "faults": [{"kind": "kill", "fired": 0}, {"kind": "cut", "fired": 4}, {"kind": "cut", "fired": 1}],
            "operations": {"acknowledged": 7}, "violations": [], "elections": 2, "endedUs": 5, "trace": "ab",
        });
        let outcome = Simulation::drawn(Path::new("x"), 3, 5, 60).outcome(&report);
        assert_eq!((outcome.idle, outcome.faults["cut"], outcome.operations["acknowledged"]), (1, 2, 7));
        assert!(!outcome.failed());
    }

    #[test]
    fn two_traces_of_one_seed_are_a_failure() {
        let of = |trace: &str| {
            let report = json!({"verdict": {"outcome": "pass"}, "trace": trace});
            Simulation::drawn(Path::new("x"), 3, 5, 60).outcome(&report)
        };
        let mut outcome = of("a");
        outcome.compare(&of("a"));
        assert!(!outcome.failed());
        outcome.compare(&of("b"));
        assert!(outcome.failed());
    }

    #[test]
    fn a_crash_is_told_by_its_first_panic() {
        let said = "starting\nthread 'main' (7) panicked at src/a.rs:1:2:\nlog went back\nnote: run with\n";
        assert_eq!(last_words(said), "panic: log went back (src/a.rs:1:2)");
        assert_eq!(last_words("a\nb\nc\nd\nkilled\n"), "b | c | d | killed");
    }

    #[test]
    fn a_program_that_says_nothing_has_crashed() {
        let outcome = Simulation::drawn(Path::new("/bin/false"), 1, 3, 1).run().unwrap();
        assert!(outcome.failed());
        assert_eq!(outcome.verdict, "crash");
    }
}
