//! Turns what was seen of a live run into the report that simulated runs have too:
//! verdict, what became of each fault, availability, latencies. `run` calls it last.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chaos_oracle::Violation;
use chaos_oracle::bounds;
use chaos_oracle::figures::{self, Answered, COMMIT, whole_after};
use chaos_oracle::history::History;
use chaos_spec::report::{FaultRecord, Mode};
use chaos_spec::{Experiment, Reason, Report, Verdict};

use crate::steady;
use crate::view::Leader;

/// What was seen. Moments are since the observer began to look.
pub struct Seen {
    /// What clients did and masters applied.
    pub history: History,
    /// What did not hold.
    pub violations: Vec<Violation>,
    /// What else speaks against passing.
    pub others: Vec<Reason>,
    /// Who led from when on.
    pub leaders: Vec<Leader>,
    /// When each term was first seen.
    pub terms: Vec<(Duration, u64)>,
    /// When the cluster became whole, or no longer was.
    pub wholeness: Vec<(Duration, bool)>,
    /// When the schedule began.
    pub origin: Duration,
    /// When the run ended.
    pub ended: Duration,
    /// What else a reader should know.
    pub notes: Vec<String>,
}

/// The report of a run, and the history it is about.
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

/// The times of a fault, as far as they came before the next one began.
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
