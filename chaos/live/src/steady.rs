//! Checks the steady state: what must hold outside faults. In this check a fault lasts from its begin until
//! the cluster has healed after it. Does no I/O. `report` calls it.
//!
//! A bound on a time holds for the 99th percentile of the calls made outside faults; a call without an answer
//! counts as infinitely slow. A single slow call may be due to the machine, one in a hundred is due to the
//! cluster.

use std::time::Duration;

use chaos_oracle::history::{History, Operation, Outcome};
use chaos_spec::experiment::Probe;
use chaos_spec::report::{FaultRecord, Violation, Window};
use chaos_spec::units::Percent;

/// Share of calls that must keep a bound on a time.
const SHARE: f64 = 0.99;

/// Returns the name of a probe, as reports list it.
pub fn name(probe: &Probe) -> String {
    match probe {
        Probe::Write(bound) => format!("steady write within {:?}", bound.within),
        Probe::Read(bound) => format!("steady read within {:?}", bound.within),
        Probe::Availability(bound) => format!("steady availability at least {}", bound.at_least),
    }
}

/// Returns how a probe was violated; `None` if it held.
pub fn check(
    probe: &Probe,
    history: &History,
    origin: Duration,
    faults: &[FaultRecord],
    availability: &[Window],
) -> Option<Violation> {
    let quiet = Quiet::new(faults);
    let what = match probe {
        Probe::Write(bound) => slow(history, origin, &quiet, bound.within, is_write),
        Probe::Read(bound) => slow(history, origin, &quiet, bound.within, is_read),
        Probe::Availability(bound) => unavailable(availability, &quiet, bound.at_least),
    };
    what.map(|what| Violation { check: name(probe), what })
}

/// The time outside faults, kept as the begin and end of each fault.
struct Quiet(Vec<(Duration, Duration)>);

impl Quiet {
    fn new(faults: &[FaultRecord]) -> Self {
        let over = |fault: &FaultRecord| match (fault.full_heal, fault.ended) {
            (Some(heal), _) => fault.at + heal,
            // A fault that happened once, with nothing to heal.
            (None, Some(ended)) if ended == fault.at => ended,
            _ => Duration::MAX,
        };
        Self(faults.iter().map(|fault| (fault.at, over(fault))).collect())
    }

    /// Returns whether no fault was there at any moment from `from` to `to`.
    fn all(&self, from: Duration, to: Duration) -> bool {
        self.0.iter().all(|(begin, end)| to < *begin || from > *end)
    }

    /// Returns how much of the time from `from` to `to` lies outside faults.
    fn within(&self, from: Duration, to: Duration) -> Duration {
        let mut cuts: Vec<(Duration, Duration)> =
            self.0.iter().map(|(begin, end)| ((*begin).clamp(from, to), (*end).clamp(from, to))).collect();
        cuts.sort_unstable();
        let (mut quiet, mut at) = (Duration::ZERO, from);
        for (begin, end) in cuts {
            quiet += begin.saturating_sub(at);
            at = at.max(end);
        }
        quiet + to.saturating_sub(at)
    }
}

fn is_write(operation: &Operation) -> bool {
    operation.call.is_write()
}

fn is_read(operation: &Operation) -> bool {
    !is_write(operation)
}

fn slow(
    history: &History,
    origin: Duration,
    quiet: &Quiet,
    within: Duration,
    which: fn(&Operation) -> bool,
) -> Option<String> {
    let mut took: Vec<Duration> = Vec::new();
    for operation in history.operations.iter().filter(|operation| which(operation)) {
        let called = Duration::from_nanos(operation.called).saturating_sub(origin);
        let returned = Duration::from_nanos(operation.returned).saturating_sub(origin);
        let unanswered = matches!(operation.outcome, Outcome::Unknown | Outcome::NotEntered);
        if quiet.all(called, returned) {
            took.push(if unanswered { Duration::MAX } else { returned.saturating_sub(called) });
        }
    }
    took.sort_unstable();
    let place = (took.len() as f64 * SHARE).ceil() as usize;
    let reached = *took.get(place.checked_sub(1)?)?;
    let words = |took: Duration| if took == Duration::MAX { "no answer".into() } else { format!("{took:?}") };
    let (longest, calls) = (words(*took.last()?), took.len());
    (reached > within)
        .then(|| format!("the 99th percentile of {calls} calls is {}, the longest {longest}", words(reached)))
}

fn unavailable(availability: &[Window], quiet: &Quiet, at_least: Percent) -> Option<String> {
    let sum = |available: bool| -> Duration {
        let windows = availability.iter().filter(|window| window.available == available);
        windows.map(|window| quiet.within(window.from, window.to)).sum()
    };
    let (up, down) = (sum(true), sum(false));
    let all = (up + down).as_secs_f64();
    let share = up.as_secs_f64() / all;
    (all > 0.0 && share < at_least.fraction())
        .then(|| format!("{:.2}% of {all:.1}s outside faults", share * 100.0))
}

#[cfg(test)]
mod tests {
    use chaos_oracle::history::Call;
    use chaos_spec::FaultKind;
    use chaos_spec::experiment::{AtLeast, Within};

    use super::*;

    const fn s(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn fault(at: u64, heal: u64) -> FaultRecord {
        let (kind, what) = (FaultKind::Kill, "kill".to_owned());
        let (detect, elect, first_write) = (None, None, None);
        let (ended, full_heal) = (Some(s(at + 1)), Some(s(heal)));
        FaultRecord { kind, what, at: s(at), ended, fired: 1, detect, elect, first_write, full_heal }
    }

    #[test]
    fn an_outage_within_a_fault_is_none_of_the_steady_state() {
        let windows = [(0, 10, true), (10, 14, false), (14, 30, true)];
        let windows = windows.map(|(from, to, available)| Window { from: s(from), to: s(to), available });
        let probe = Probe::Availability(AtLeast { at_least: Percent::from_hundredths(9900).unwrap() });
        let check = |faults: &[FaultRecord]| check(&probe, &History::default(), s(0), faults, &windows);
        assert_eq!(check(&[fault(9, 5), fault(11, 4)]), None);
        assert_eq!(check(&[]).unwrap().what, "86.67% of 30.0s outside faults");
        assert_eq!(check(&[fault(9, 3)]).unwrap().what, "92.59% of 27.0s outside faults");
    }

    #[test]
    fn a_call_counts_when_nothing_was_wrong_from_its_begin_to_its_end() {
        let call = |called: u64, took_ms: u64, outcome: Outcome| Operation {
            client: 0,
            call: Call::Create { key: "reg-1".into(), value: "v".into() },
            called: called * 1_000_000_000,
            returned: called * 1_000_000_000 + took_ms * 1_000_000,
            outcome,
        };
        let written = Outcome::Written { revision: 1 };
        let probe = Probe::Write(Within { within: Duration::from_millis(500) });
        let check = |operations: Vec<Operation>| {
            let history = History { operations, ..History::default() };
            check(&probe, &history, s(0), &[fault(9, 5)], &[])
        };
        assert_eq!(check(vec![call(1, 20, written.clone()), call(8, 1500, written.clone())]), None);
        assert_eq!(check(vec![call(10, 20, Outcome::Unknown)]), None);
        let slow = check(vec![call(1, 800, written)]).unwrap();
        assert_eq!(slow.what, "the 99th percentile of 1 calls is 800ms, the longest 800ms");
        assert!(check(vec![call(20, 1, Outcome::Unknown)]).unwrap().what.contains("is no answer"));
    }
}
