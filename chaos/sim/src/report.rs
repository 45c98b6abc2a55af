//! Turns what was seen of a run into the report that live runs have too: verdict,
//! what became of each fault, availability, latencies. `run.rs` calls it last.

use std::time::Duration;

use chaos_oracle::figures::{self, Answered, COMMIT, whole_after};
use chaos_oracle::history::History;
use chaos_oracle::{Violation, bounds};
use chaos_spec::report::{FaultRecord, Mode};
use chaos_spec::{Experiment, NodeName, Report, Verdict};

/// What was seen.
pub struct Seen<'a> {
    /// What clients did and replicas applied.
    pub history: &'a History,
    /// What did not hold.
    pub violations: Vec<Violation>,
    /// Who led from when on: simulated time, term, node.
    pub leaders: Vec<(Duration, u64, NodeName)>,
    /// When the cluster became whole, or no longer was.
    pub wholeness: Vec<(Duration, bool)>,
    /// When the schedule began, in simulated time.
    pub origin: Duration,
    /// When the run ended.
    pub ended: Duration,
}

/// The report of a run.
pub fn build(experiment: &Experiment, seed: u64, mut faults: Vec<FaultRecord>, seen: Seen<'_>) -> Report {
    let acknowledged = figures::acknowledged(seen.history, seen.origin);
    for fault in &mut faults {
        recovery(fault, &seen, &acknowledged);
    }
    let (mut violations, open) = figures::findings(&seen.violations, &acknowledged);
    let bounds = &experiment.spec.bounds;
    let elections = (seen.leaders.len() as u64).saturating_sub(1);
    violations.extend(bounds::check(bounds, seen.history, seen.origin, elections, &faults));
    let invariants = experiment.spec.invariants.iter().map(|invariant| invariant.name().to_owned());
    Report {
        experiment: experiment.metadata.name.clone(),
        seed: Some(seed),
        commit: COMMIT.to_owned(),
        mode: Mode::Simulated,
        started: seen.origin,
        ended: seen.ended,
        verdict: Verdict::judge(&violations, &faults, open),
        checks: bounds::names(bounds).into_iter().chain(invariants).collect(),
        availability: figures::availability(
            seen.history,
            seen.origin,
            seen.ended.saturating_sub(seen.origin),
        ),
        operations: figures::operations(seen.history, &seen.violations),
        latency: figures::latency(seen.history),
        elections,
        faults,
        violations,
        notes: Vec::new(),
    }
}

fn recovery(fault: &mut FaultRecord, seen: &Seen<'_>, acknowledged: &[Answered]) {
    let at = fault.at;
    let since = |moment: Duration| moment.saturating_sub(seen.origin).checked_sub(at);
    // A leader is seen in the moment in which it begins to lead: nobody sees its term before.
    fault.detect = seen.leaders.iter().find_map(|(moment, ..)| since(*moment).filter(|it| !it.is_zero()));
    fault.elect = seen.leaders.iter().find_map(|(moment, ..)| since(*moment).filter(|it| !it.is_zero()));
    let first = acknowledged.iter().find(|write| write.called >= at);
    fault.first_write = first.map(|write| write.returned.saturating_sub(at));
    fault.full_heal =
        fault.ended.and_then(|ended| whole_after(&seen.wholeness, seen.origin + ended)).and_then(since);
}
