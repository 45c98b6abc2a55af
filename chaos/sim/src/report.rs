//! Turns what was seen of a run into the report that live runs have too: verdict,
//! what became of each fault, availability, latencies. `run.rs` calls it last.

use std::time::Duration;

use chaos_spec::report::{FaultRecord, Latency, Mode, Operations, Violation as Broken, Window};
use chaos_spec::{Experiment, Invariant, NodeName, Reason, Report, Verdict};

use chaos_oracle::history::{History, Operation, Outcome};
use chaos_oracle::{Violation, linearizable, lists, lost, order, phantom, watches};

/// Writes count as available while one is acknowledged at least this often.
const AVAILABILITY_WINDOW: Duration = Duration::from_millis(500);

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

/// The commit this was built from, where the build knew it.
const COMMIT: &str = match option_env!("EPHOR_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// The report of a run.
pub fn build(experiment: &Experiment, seed: u64, mut faults: Vec<FaultRecord>, seen: Seen<'_>) -> Report {
    let acknowledged = acknowledged(&seen);
    for fault in &mut faults {
        recovery(fault, &seen, &acknowledged);
    }
    let (undecided, violations): (Vec<_>, Vec<_>) =
        seen.violations.iter().partition(|violation| violation.is_undecided());
    let mut others: Vec<Reason> = undecided
        .iter()
        .map(|violation| Reason::Undecided {
            invariant: Invariant::Linearizable,
            why: violation.what.clone(),
        })
        .collect();
    if acknowledged.is_empty() {
        let why = "no write was acknowledged".to_owned();
        others.push(Reason::Undecided { invariant: Invariant::AcknowledgedWritesKept, why });
    }
    let violations: Vec<Broken> = violations
        .iter()
        .map(|violation| Broken {
            check: invariant(violation.check).to_owned(),
            what: violation.what.replace('\n', " "),
        })
        .collect();
    Report {
        experiment: experiment.metadata.name.clone(),
        seed: Some(seed),
        commit: COMMIT.to_owned(),
        mode: Mode::Simulated,
        started: seen.origin,
        ended: seen.ended,
        verdict: Verdict::judge(&violations, &faults, others),
        checks: experiment.spec.invariants.iter().map(|invariant| invariant.name().to_owned()).collect(),
        availability: availability(&acknowledged, seen.ended.saturating_sub(seen.origin)),
        operations: operations(&seen),
        latency: latency(seen.history),
        elections: (seen.leaders.len() as u64).saturating_sub(1),
        faults,
        violations,
        notes: Vec::new(),
    }
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

fn acknowledged(seen: &Seen<'_>) -> Vec<Acknowledged> {
    let since = |stamp| Duration::from_nanos(stamp).saturating_sub(seen.origin);
    let writes = seen.history.operations.iter().filter(|operation| is_acknowledged(operation));
    let mut writes: Vec<_> = writes
        .map(|operation| Acknowledged {
            called: since(operation.called),
            returned: since(operation.returned),
        })
        .collect();
    writes.sort_by_key(|write| write.returned);
    writes
}

fn is_acknowledged(operation: &Operation) -> bool {
    matches!(operation.outcome, Outcome::Written { .. } | Outcome::Deleted { .. })
}

fn recovery(fault: &mut FaultRecord, seen: &Seen<'_>, acknowledged: &[Acknowledged]) {
    let at = fault.at;
    let since = |moment: Duration| moment.saturating_sub(seen.origin).checked_sub(at);
    fault.elect = seen.leaders.iter().find_map(|(moment, ..)| since(*moment).filter(|it| !it.is_zero()));
    let first = acknowledged.iter().find(|write| write.called >= at);
    fault.first_write = first.map(|write| write.returned.saturating_sub(at));
    fault.full_heal =
        fault.ended.and_then(|ended| whole_after(&seen.wholeness, seen.origin + ended)).and_then(since);
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

fn operations(seen: &Seen<'_>) -> Operations {
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

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_gap_between_acknowledged_writes_is_an_outage() {
        let write = |at| Acknowledged { called: ms(at), returned: ms(at) };
        let writes = [100, 400, 800, 3000, 3200].map(write);
        let windows = availability(&writes, ms(3300));
        let shape: Vec<_> = windows.iter().map(|window| (window.from, window.to, window.available)).collect();
        assert_eq!(shape, [(ms(0), ms(800), true), (ms(800), ms(3000), false), (ms(3000), ms(3300), true)]);
    }

    #[test]
    fn whole_is_whole_until_it_is_not() {
        let wholeness = [(ms(10), true), (ms(20), false), (ms(50), true)];
        assert_eq!(whole_after(&wholeness, ms(15)), Some(ms(15)));
        assert_eq!(whole_after(&wholeness, ms(30)), Some(ms(50)));
        assert_eq!(whole_after(&wholeness[..2], ms(30)), None);
    }
}
