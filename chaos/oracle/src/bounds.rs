//! Checks an experiment's bounds on the whole run, in and outside faults: elections, the longest write, and
//! how soon the loss of a leader is noticed. Does no I/O. The reports of simulated and live runs call it.

use std::time::Duration;

use chaos_spec::experiment::Bounds;
use chaos_spec::report::{FaultRecord, Violation};
use chaos_spec::{FaultKind, Target};

use crate::history::{History, Operation, Outcome};

/// Returns the names of the bounds that an experiment sets, as reports list them.
pub fn names(bounds: &Bounds) -> Vec<String> {
    let elections = bounds.elections.map(elections_name);
    let longest = bounds.longest_write.map(longest_name);
    let noticed = bounds.noticed.map(noticed_name);
    [elections, longest, noticed].into_iter().flatten().collect()
}

fn elections_name(most: u64) -> String {
    format!("at most {most} elections")
}

fn longest_name(within: Duration) -> String {
    format!("no write longer than {within:?}")
}

fn noticed_name(within: Duration) -> String {
    format!("lost leaders noticed within {within:?}")
}

/// Returns the violated bounds. Stamps of the history and `origin` have the same zero; operations before
/// `origin` do not count.
pub fn check(
    bounds: &Bounds,
    history: &History,
    origin: Duration,
    elections: u64,
    faults: &[FaultRecord],
) -> Vec<Violation> {
    let mut found = Vec::new();
    if let Some(most) = bounds.elections.filter(|most| elections > *most) {
        found.push(Violation { check: elections_name(most), what: format!("there were {elections}") });
    }
    if let Some(within) = bounds.longest_write
        && let Some(what) = longest(history, origin, within)
    {
        found.push(Violation { check: longest_name(within), what });
    }
    if let Some(within) = bounds.noticed {
        let lost = faults.iter().filter(|fault| fault.fired > 0 && loses_leader(fault));
        let late = lost.filter(|fault| fault.detect.is_none_or(|detect| detect > within));
        found.extend(late.map(|fault| {
            let when = fault.detect.map_or("never".to_owned(), |detect| format!("after {detect:?}"));
            Violation { check: noticed_name(within), what: format!("{}: {when}", fault.what) }
        }));
    }
    found
}

/// Returns whether a fault kills the leader; its line begins as `Fault` formats it.
fn loses_leader(fault: &FaultRecord) -> bool {
    let leader = format!(" {}", Target::Leader);
    matches!(fault.kind, FaultKind::Kill | FaultKind::Powerloss) && fault.what.contains(&leader)
}

/// Describes the slowest write and counts those slower than `within`; `None` if there are none.
fn longest(history: &History, origin: Duration, within: Duration) -> Option<String> {
    let waited = |operation: &&Operation| match operation.outcome {
        Outcome::Unknown => Duration::MAX,
        _ => Duration::from_nanos(operation.returned.saturating_sub(operation.called)),
    };
    let writes = history.operations.iter().filter(|operation| operation.call.is_write());
    let writes = writes.filter(|operation| Duration::from_nanos(operation.called) >= origin);
    let slow: Vec<&Operation> = writes.filter(|operation| waited(operation) > within).collect();
    let slowest = slow.iter().copied().max_by_key(waited)?;
    let time = match waited(&slowest) {
        Duration::MAX => "for ever".to_owned(),
        time => format!("{time:?}"),
    };
    Some(format!("{} writes did, one of them {time}: {slowest}", slow.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Call;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn history(writes: &[(u64, u64, Outcome)]) -> History {
        let write = |(called, returned, outcome): &(u64, u64, Outcome)| {
            let call = Call::Create { key: "reg-1".into(), value: format!("v{called}") };
            let (called, returned) = (called * 1_000_000, returned * 1_000_000);
            Operation { client: 0, call, called, returned, outcome: outcome.clone() }
        };
        History { operations: writes.iter().map(write).collect(), ..History::default() }
    }

    fn kill(what: &str, detect: Option<Duration>) -> FaultRecord {
        FaultRecord {
            kind: FaultKind::Kill,
            what: what.to_owned(),
            at: ms(5000),
            ended: Some(ms(9000)),
            fired: 1,
            detect,
            elect: None,
            first_write: None,
            full_heal: None,
        }
    }

    #[test]
    fn what_is_within_its_bounds_passes() {
        let bounds = Bounds { elections: Some(1), longest_write: Some(ms(1000)), noticed: Some(ms(1000)) };
        let written = Outcome::Written { revision: 1 };
        // Operations before the origin do not count.
        let history = history(&[(10, 9000, written.clone()), (5000, 5900, written)]);
        let faults = [kill("kill leader (m1)", Some(ms(700))), kill("kill follower (m2)", None)];
        assert_eq!(check(&bounds, &history, ms(1000), 1, &faults), []);
        assert_eq!(check(&Bounds::default(), &history, ms(0), 99, &[kill("kill leader", None)]), []);
        assert_eq!(names(&bounds).len(), 3);
        assert_eq!(names(&Bounds::default()).len(), 0);
    }

    #[test]
    fn what_is_beyond_them_is_found() {
        let bounds = Bounds { elections: Some(0), longest_write: Some(ms(1000)), noticed: Some(ms(1000)) };
        let written = Outcome::Written { revision: 1 };
        let slow = history(&[(5000, 6100, written.clone())]);
        let faults = [kill("kill leader (m1)", Some(ms(1700))), kill("kill leader (m2)", None)];
        let found = check(&bounds, &slow, ms(0), 2, &faults);
        let lines: Vec<_> = found.iter().map(|found| format!("{}: {}", found.check, found.what)).collect();
        assert_eq!(lines.len(), 4, "{lines:#?}");
        assert_eq!(lines[0], "at most 0 elections: there were 2");
        assert!(
            lines[1].starts_with("no write longer than 1s: 1 writes did, one of them 1.1s: "),
            "{}",
            lines[1]
        );
        assert_eq!(lines[2], "lost leaders noticed within 1s: kill leader (m1): after 1.7s");
        assert_eq!(lines[3], "lost leaders noticed within 1s: kill leader (m2): never");
        let unknown = check(&bounds, &history(&[(5000, 5001, Outcome::Unknown)]), ms(0), 0, &[]);
        assert!(unknown[0].what.contains("for ever"), "{unknown:?}");
    }
}
