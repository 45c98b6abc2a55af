//! Turns what was seen of a live run into the report that simulated runs have too:
//! verdict, what became of each fault, availability, latencies. `run` calls it last.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chaos_oracle::history::{History, Operation, Outcome};
use chaos_oracle::{Violation, linearizable, lists, lost, order, phantom, watches};
use chaos_spec::report::{FaultRecord, Latency, Mode, Operations, Violation as Broken, Window};
use chaos_spec::{Experiment, Invariant, Reason, Report, Verdict};

use crate::steady;
use crate::view::Leader;

/// Writes count as available while one is acknowledged at least this often.
const AVAILABILITY_WINDOW: Duration = Duration::from_millis(500);

/// The commit this was built from, where the build knew it.
const COMMIT: &str = match option_env!("EPHOR_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

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
    let acknowledged = acknowledged(&seen);
    for index in 0..faults.len() {
        let until = faults.get(index + 1).map_or(Duration::MAX, |next| next.at);
        recovery(&mut faults[index], until, &seen, &acknowledged);
    }
    let availability = availability(&acknowledged, seen.ended.saturating_sub(seen.origin));
    let (undecided, broken): (Vec<_>, Vec<_>) = seen.violations.iter().partition(|v| v.is_undecided());
    let mut others = seen.others.clone();
    others.extend(undecided.iter().map(|violation| Reason::Undecided {
        invariant: Invariant::Linearizable,
        why: violation.what.clone(),
    }));
    if acknowledged.is_empty() {
        let why = "no write was acknowledged".to_owned();
        others.push(Reason::Undecided { invariant: Invariant::AcknowledgedWritesKept, why });
    }
    let one_line = |violation: &&Violation| Broken {
        check: invariant(violation.check).to_owned(),
        what: violation.what.replace('\n', " "),
    };
    let mut violations: Vec<Broken> = broken.iter().map(one_line).collect();
    let probes = &experiment.spec.steady_state;
    violations.extend(
        probes.iter().filter_map(|p| steady::check(p, &seen.history, seen.origin, &faults, &availability)),
    );
    let invariants = experiment.spec.invariants.iter().map(|invariant| invariant.name().to_owned());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let report = Report {
        experiment: experiment.metadata.name.clone(),
        seed: Some(seed),
        commit: COMMIT.to_owned(),
        mode: Mode::Live,
        started: now.saturating_sub(seen.ended.saturating_sub(seen.origin)),
        ended: now,
        verdict: Verdict::judge(&violations, &faults, others),
        checks: probes.iter().map(steady::name).chain(invariants).collect(),
        availability,
        operations: operations(&seen),
        latency: latency(&seen.history),
        elections: (seen.leaders.len() as u64).saturating_sub(1),
        faults,
        violations,
        notes: seen.notes,
    };
    (report, seen.history)
}

/// The invariant that a check of the oracle stands for.
fn invariant(check: &'static str) -> &'static str {
    match check {
        lost::CHECK => Invariant::AcknowledgedWritesKept.name(),
        phantom::CHECK => Invariant::NoPhantoms.name(),
        order::CHECK | lists::CHECK | linearizable::CHECK => Invariant::Linearizable.name(),
        watches::CHECK => Invariant::WatchesExact.name(),
        other => other,
    }
}

/// A write that was acknowledged, since the origin.
struct Acknowledged {
    called: Duration,
    returned: Duration,
}

fn acknowledged(seen: &Seen) -> Vec<Acknowledged> {
    let since = |stamp| Duration::from_nanos(stamp).saturating_sub(seen.origin);
    let writes = seen.history.operations.iter().filter(|operation| is_acknowledged(operation));
    let mut writes: Vec<_> =
        writes.map(|o| Acknowledged { called: since(o.called), returned: since(o.returned) }).collect();
    writes.sort_by_key(|write| write.returned);
    writes
}

fn is_acknowledged(operation: &Operation) -> bool {
    matches!(operation.outcome, Outcome::Written { .. } | Outcome::Deleted { .. })
}

/// The times of a fault, as far as they came before the next one began.
fn recovery(fault: &mut FaultRecord, until: Duration, seen: &Seen, acknowledged: &[Acknowledged]) {
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

/// The first moment at or after `moment` at which the cluster was whole.
fn whole_after(wholeness: &[(Duration, bool)], moment: Duration) -> Option<Duration> {
    let next = wholeness.iter().position(|(at, _)| *at > moment).unwrap_or(wholeness.len());
    if next.checked_sub(1).and_then(|before| wholeness.get(before)).is_some_and(|(_, whole)| *whole) {
        return Some(moment);
    }
    wholeness[next..].iter().find(|(_, whole)| *whole).map(|(at, _)| *at)
}

/// Windows in which a write was acknowledged at least every [`AVAILABILITY_WINDOW`].
fn availability(acknowledged: &[Acknowledged], end: Duration) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    let mut push = |from: Duration, to: Duration, available: bool| match windows.last_mut() {
        Some(last) if last.available == available => last.to = to,
        _ if from < to => windows.push(Window { from, to, available }),
        _ => {}
    };
    let mut before = Duration::ZERO;
    for write in acknowledged {
        push(before, write.returned, write.returned.saturating_sub(before) <= AVAILABILITY_WINDOW);
        before = write.returned;
    }
    push(before, end.max(before), end.saturating_sub(before) <= AVAILABILITY_WINDOW);
    windows
}

fn operations(seen: &Seen) -> Operations {
    let mut counts = Operations::default();
    for operation in &seen.history.operations {
        match operation.outcome {
            Outcome::Written { .. } | Outcome::Deleted { .. } | Outcome::Read(_) | Outcome::Listed { .. } => {
                counts.acknowledged += 1;
            }
            Outcome::Refused(_) => counts.refused += 1,
            Outcome::Unknown => counts.unknown += 1,
            Outcome::NotEntered => counts.not_entered += 1,
        }
    }
    let of = |check| seen.violations.iter().filter(|violation| violation.check == check).count() as u64;
    (counts.lost, counts.phantom) = (of(lost::CHECK), of(phantom::CHECK));
    counts
}

fn latency(history: &History) -> Latency {
    let mut latency = Latency::default();
    for operation in history.operations.iter().filter(|operation| is_acknowledged(operation)) {
        latency.record(Duration::from_nanos(operation.returned.saturating_sub(operation.called)));
    }
    latency
}
