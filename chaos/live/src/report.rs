//! Turns what was seen of a live run into the same report as that of a simulated run: verdict, result of each
//! fault, availability, latencies. `run` calls it last.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chaos_oracle::Violation;
use chaos_oracle::bounds;
use chaos_oracle::figures::{self, Answered, COMMIT, whole_after};
use chaos_oracle::history::History;
use chaos_spec::report::{FaultRecord, Mode};
use chaos_spec::{Experiment, Reason, Report, Verdict};

use crate::steady;
use crate::view::Leader;

/// What was seen of a run. Moments are durations since the observer was created.
pub struct Seen {
    /// Operations of the clients and changes that the masters applied.
    pub history: History,
    /// Violations found by the checks.
    pub violations: Vec<Violation>,
    /// Other reasons why the run has not passed.
    pub others: Vec<Reason>,
    /// Leader of each term, and since when it led.
    pub leaders: Vec<Leader>,
    /// Moment at which each term was first seen.
    pub terms: Vec<(Duration, u64)>,
    /// Moments at which the cluster became whole (`true`) or ceased to be whole (`false`).
    pub wholeness: Vec<(Duration, bool)>,
    /// Moment at which the schedule began.
    pub origin: Duration,
    /// Moment at which the run ended.
    pub ended: Duration,
    /// Other notes for the reader of the report.
    pub notes: Vec<String>,
}

/// Builds the report of a run; returns it with the history it is about.
pub fn build(
    experiment: &Experiment,
    seed: u64,
    mut faults: Vec<FaultRecord>,
    seen: Seen,
) -> (Report, History) {
    let acknowledged = figures::acknowledged(&seen.history, seen.origin);
    for index in 0..faults.len() {
        let until = faults.get(index + 1).map_or(Duration::MAX, |next| next.at);
        recovery(&mut faults[index], until, &seen, &acknowledged);
    }
    let ended = seen.ended.saturating_sub(seen.origin);
    let availability = figures::availability(&seen.history, seen.origin, ended);
    let (mut violations, open) = figures::findings(&seen.violations, &acknowledged);
    let others: Vec<_> = seen.others.iter().cloned().chain(open).collect();
    let probes = &experiment.spec.steady_state;
    violations.extend(
        probes.iter().filter_map(|p| steady::check(p, &seen.history, seen.origin, &faults, &availability)),
    );
    let bounds = &experiment.spec.bounds;
    let elections = (seen.leaders.len() as u64).saturating_sub(1);
    violations.extend(bounds::check(bounds, &seen.history, seen.origin, elections, &faults));
    let invariants = experiment.spec.invariants.iter().map(|invariant| invariant.name().to_owned());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let report = Report {
        experiment: experiment.metadata.name.clone(),
        seed: Some(seed),
        commit: COMMIT.to_owned(),
        mode: Mode::Live,
        started: now.saturating_sub(ended),
        ended: now,
        verdict: Verdict::judge(&violations, &faults, others),
        checks: probes.iter().map(steady::name).chain(bounds::names(bounds)).chain(invariants).collect(),
        availability,
        operations: figures::operations(&seen.history, &seen.violations),
        latency: figures::latency(&seen.history),
        elections,
        faults,
        violations,
        notes: seen.notes,
    };
    (report, seen.history)
}

/// Sets the recovery times of a fault, as far as they lie before `until`, when the next fault began.
fn recovery(fault: &mut FaultRecord, until: Duration, seen: &Seen, acknowledged: &[Answered]) {
    if fault.fired == 0 {
        return;
    }
    let at = fault.at;
    let since = |moment: Duration| moment.saturating_sub(seen.origin);
    let next = |moments: &mut dyn Iterator<Item = Duration>| {
        moments.map(since).find(|moment| *moment > at).filter(|m| *m < until).map(|moment| moment - at)
    };
    fault.detect = next(&mut seen.terms.iter().map(|(moment, _)| *moment));
    fault.elect = next(&mut seen.leaders.iter().map(|leader| leader.since));
    let first = acknowledged.iter().find(|write| write.called >= at);
    fault.first_write = first.map(|write| write.returned.saturating_sub(at));
    let healed = fault.ended.and_then(|ended| whole_after(&seen.wholeness, seen.origin + ended));
    fault.full_heal = healed.and_then(|moment| since(moment).checked_sub(at));
}
