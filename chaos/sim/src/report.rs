//! Turns what was seen of a simulated run into the same report as that of a live run: verdict, result of each
//! fault, availability, latencies. `run.rs` calls it last.

use std::time::Duration;

use chaos_oracle::figures::{self, Answered, COMMIT, whole_after};
use chaos_oracle::history::History;
use chaos_oracle::{Violation, bounds};
use chaos_spec::report::{FaultRecord, Mode};
use chaos_spec::{Experiment, NodeName, Report, Verdict};

/// What was seen of a run.
pub struct Seen<'a> {
    /// Operations of the clients and changes that the replicas applied.
    pub history: &'a History,
    /// Violations found by the checks.
    pub violations: Vec<Violation>,
    /// Leader of each term: since when (simulated time), the term, the node.
    pub leaders: Vec<(Duration, u64, NodeName)>,
    /// Moments at which the cluster became whole (`true`) or ceased to be whole (`false`).
    pub wholeness: Vec<(Duration, bool)>,
    /// Simulated time at which the schedule began.
    pub origin: Duration,
    /// Simulated time at which the run ended.
    pub ended: Duration,
}

/// Builds the report of a run.
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
    // A term is seen only when its leader begins to lead, so detection and election have the same time.
    fault.detect = seen.leaders.iter().find_map(|(moment, ..)| since(*moment).filter(|it| !it.is_zero()));
    fault.elect = seen.leaders.iter().find_map(|(moment, ..)| since(*moment).filter(|it| !it.is_zero()));
    let first = acknowledged.iter().find(|write| write.called >= at);
    fault.first_write = first.map(|write| write.returned.saturating_sub(at));
    fault.full_heal =
        fault.ended.and_then(|ended| whole_after(&seen.wholeness, seen.origin + ended)).and_then(since);
}
