//! Figures that simulated and live reports share: acknowledged writes, times of availability, counts,
//! latencies, and the invariant that each check of the oracle stands for. Does no I/O. The reports of
//! `chaos/sim` and `chaos/live` use it.

use std::time::Duration;

use chaos_spec::report::{Latency, Operations, Violation as Broken, Window};
use chaos_spec::{Invariant, Reason};

use crate::history::{History, Operation, Outcome};
use crate::{Violation, finals, linearizable, lists, lost, order, phantom, watches};

/// Maximum time between answers, while any call waits, for writes to count as available.
const AVAILABILITY_WINDOW: Duration = Duration::from_millis(500);

/// Commit that this was built from, if the build set it.
pub const COMMIT: &str = match option_env!("EPHOR_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Times of a call and its answer, since the origin of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Time of the call.
    pub called: Duration,
    /// Time of the answer.
    pub returned: Duration,
}

fn answered(operation: &Operation, origin: Duration) -> Answered {
    let since = |stamp| Duration::from_nanos(stamp).saturating_sub(origin);
    Answered { called: since(operation.called), returned: since(operation.returned) }
}

fn is_acknowledged(operation: &Operation) -> bool {
    matches!(operation.outcome, Outcome::Written { .. } | Outcome::Deleted { .. })
}

/// Returns the acknowledged writes, ordered by the time of their answers.
pub fn acknowledged(history: &History, origin: Duration) -> Vec<Answered> {
    let writes = history.operations.iter().filter(|operation| is_acknowledged(operation));
    let mut writes: Vec<_> = writes.map(|operation| answered(operation, origin)).collect();
    writes.sort_by_key(|write| write.returned);
    writes
}

/// Returns when writes were available, from the origin to `end`. A refusal because of the object's state is
/// an answer. Time without an answer is an outage from the first call on that got none in time; time without
/// calls counts as available.
pub fn availability(history: &History, origin: Duration, end: Duration) -> Vec<Window> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for operation in history.operations.iter().filter(|operation| operation.call.is_write()) {
        let write = answered(operation, origin);
        if matches!(operation.outcome, Outcome::Unknown | Outcome::NotEntered) {
            bad.push(write.called);
            continue;
        }
        good.push(write.returned);
        if write.returned.saturating_sub(write.called) > AVAILABILITY_WINDOW {
            bad.push(write.called);
        }
    }
    good.sort_unstable();
    bad.sort_unstable();
    good.push(end.max(good.last().copied().unwrap_or_default()));
    let mut windows = Windows::default();
    let mut before = Duration::ZERO;
    for next in good {
        let first_bad =
            bad.get(bad.partition_point(|called| *called < before)).filter(|called| **called < next);
        let down = first_bad.filter(|_| next.saturating_sub(before) > AVAILABILITY_WINDOW);
        windows.push(before, *down.unwrap_or(&next), true);
        windows.push(*down.unwrap_or(&next), next, false);
        before = next;
    }
    windows.0
}

#[derive(Default)]
struct Windows(Vec<Window>);

impl Windows {
    fn push(&mut self, from: Duration, to: Duration, available: bool) {
        match self.0.last_mut() {
            _ if from >= to => {}
            Some(last) if last.available == available => last.to = to,
            _ => self.0.push(Window { from, to, available }),
        }
    }
}

/// Counts operations by outcome.
pub fn operations(history: &History, violations: &[Violation]) -> Operations {
    let mut counts = Operations::default();
    for operation in &history.operations {
        match operation.outcome {
            Outcome::Written { .. }
            | Outcome::Deleted { .. }
            | Outcome::Read(_)
            | Outcome::Listed { .. }
            | Outcome::Shown { .. } => {
                counts.acknowledged += 1;
            }
            Outcome::Refused(_) => counts.refused += 1,
            Outcome::Unknown => counts.unknown += 1,
            Outcome::NotEntered => counts.not_entered += 1,
        }
    }
    let of = |check| violations.iter().filter(|violation| violation.check == check).count() as u64;
    (counts.lost, counts.phantom) = (of(lost::CHECK) + of(finals::CHECK), of(phantom::CHECK));
    counts
}

/// Returns the latencies of acknowledged writes.
pub fn latency(history: &History) -> Latency {
    let mut latency = Latency::default();
    for operation in history.operations.iter().filter(|operation| is_acknowledged(operation)) {
        latency.record(Duration::from_nanos(operation.returned.saturating_sub(operation.called)));
    }
    latency
}

/// Returns the first moment at or after `moment` at which the cluster was whole; `wholeness` has the moments
/// at which that changed.
pub fn whole_after(wholeness: &[(Duration, bool)], moment: Duration) -> Option<Duration> {
    let next = wholeness.iter().position(|(at, _)| *at > moment).unwrap_or(wholeness.len());
    if next.checked_sub(1).and_then(|before| wholeness.get(before)).is_some_and(|(_, whole)| *whole) {
        return Some(moment);
    }
    wholeness[next..].iter().find(|(_, whole)| *whole).map(|(at, _)| *at)
}

/// Splits the oracle's findings into violations and reasons that leave the verdict open, as reports have
/// them.
pub fn findings(violations: &[Violation], acknowledged: &[Answered]) -> (Vec<Broken>, Vec<Reason>) {
    let (undecided, broken): (Vec<_>, Vec<_>) = violations.iter().partition(|found| found.is_undecided());
    let broken = broken.iter().map(|found| Broken {
        check: invariant(found.check).to_owned(),
        what: found.what.replace('\n', " "),
    });
    let undecided = undecided
        .iter()
        .map(|found| Reason::Undecided { invariant: Invariant::Linearizable, why: found.what.clone() });
    let mut open: Vec<_> = undecided.collect();
    if acknowledged.is_empty() {
        let why = "no write was acknowledged".to_owned();
        open.push(Reason::Undecided { invariant: Invariant::AcknowledgedWritesKept, why });
    }
    (broken.collect(), open)
}

/// Returns the invariant that a check of the oracle stands for.
fn invariant(check: &'static str) -> &'static str {
    match check {
        lost::CHECK | finals::CHECK => Invariant::AcknowledgedWritesKept.name(),
        phantom::CHECK => Invariant::NoPhantoms.name(),
        order::CHECK | lists::CHECK | linearizable::CHECK => Invariant::Linearizable.name(),
        watches::CHECK => Invariant::WatchesExact.name(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Call;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn create(called: u64, returned: u64, outcome: Outcome) -> Operation {
        let call = Call::Create { key: "reg-1".into(), value: "v".into() };
        Operation { client: 0, call, called: called * 1_000_000, returned: returned * 1_000_000, outcome }
    }

    fn windows(operations: Vec<Operation>) -> Vec<(Duration, Duration, bool)> {
        let history = History { operations, ..History::default() };
        let windows = availability(&history, Duration::ZERO, ms(4000));
        windows.iter().map(|window| (window.from, window.to, window.available)).collect()
    }

    #[test]
    fn writes_that_get_no_answer_are_an_outage_until_one_does() {
        let written = |at| create(at, at + 10, Outcome::Written { revision: 1 });
        let unknown = create(1000, 0, Outcome::Unknown);
        let expected = [(ms(0), ms(1000), true), (ms(1000), ms(3010), false), (ms(3010), ms(4000), true)];
        assert_eq!(windows(vec![written(100), unknown, written(3000)]), expected);
        let late = create(1000, 3010, Outcome::Written { revision: 2 });
        assert_eq!(windows(vec![written(100), late]), expected);
    }

    #[test]
    fn time_in_which_nobody_asks_is_no_outage() {
        let refused = create(3000, 3010, Outcome::Refused(crate::history::Refusal::Conflict));
        assert_eq!(windows(vec![refused]), [(ms(0), ms(4000), true)]);
    }

    #[test]
    fn a_call_that_fails_beside_others_that_do_not_is_no_outage() {
        let written = |at| create(at, at + 10, Outcome::Written { revision: 1 });
        let refused = create(300, 0, Outcome::NotEntered);
        assert_eq!(windows(vec![written(100), refused, written(400)]), [(ms(0), ms(4000), true)]);
    }

    #[test]
    fn whole_is_whole_until_it_is_not() {
        let wholeness = [(ms(10), true), (ms(20), false), (ms(50), true)];
        assert_eq!(whole_after(&wholeness, ms(15)), Some(ms(15)));
        assert_eq!(whole_after(&wholeness, ms(30)), Some(ms(50)));
        assert_eq!(whole_after(&wholeness[..2], ms(30)), None);
    }
}
