//! Sample reports for the tests of this crate, with texts that try to break out of each format and counts
//! that occur nowhere else by chance.

use std::time::Duration;

use super::{FaultRecord, Latency, Mode, Operations, Report, Violation, Window};
use crate::experiment::Invariant;
use crate::fault::FaultKind;
use crate::verdict::{Reason, Verdict};

/// Text that must never appear unescaped.
pub(crate) const SCRIPT: &str = "<script>alert(1)</script>";

/// Creates a fault record that fired `fired` times.
pub(crate) fn fault(what: &str, fired: u64) -> FaultRecord {
    FaultRecord {
        kind: FaultKind::Kill,
        what: what.into(),
        at: Duration::from_secs(10),
        ended: Some(Duration::from_secs(20)),
        fired,
        detect: Some(Duration::from_millis(310)),
        elect: Some(Duration::from_millis(620)),
        first_write: Some(Duration::from_millis(730)),
        full_heal: Some(Duration::from_millis(11_840)),
    }
}

fn window(from: u64, to: u64, available: bool) -> Window {
    Window { from: Duration::from_secs(from), to: Duration::from_secs(to), available }
}

/// Creates the report of a run that passed.
pub(crate) fn passed() -> Report {
    let mut latency = Latency::default();
    (0..4_211).for_each(|_| latency.record(Duration::from_micros(900)));
    latency.record(Duration::from_micros(45_000));
    Report {
        experiment: "leader-kill".into(),
        seed: Some(987_654_321),
        commit: "0123abcd".into(),
        mode: Mode::Simulated,
        started: Duration::ZERO,
        ended: Duration::from_secs(60),
        verdict: Verdict::Pass,
        checks: vec!["acknowledged-writes-kept".into(), "linearizable".into(), "heals".into()],
        faults: vec![fault("kill leader (m2)", 1)],
        availability: vec![window(0, 10, true), window(10, 13, false), window(13, 60, true)],
        operations: Operations {
            acknowledged: 4_212,
            refused: 313,
            unknown: 51,
            not_entered: 1_717,
            lost: 0,
            phantom: 0,
        },
        latency,
        elections: 29,
        violations: Vec::new(),
        notes: vec!["the clock was simulated".into()],
    }
}

/// Creates the report of a run without violations in which a fault never fired.
pub(crate) fn unknown() -> Report {
    let mut report = passed();
    report.mode = Mode::Live;
    report.seed = None;
    report.started = Duration::from_millis(1_767_225_600_000);
    report.ended = report.started + Duration::from_secs(60);
    report.faults.push(FaultRecord {
        ended: None,
        detect: None,
        elect: None,
        first_write: None,
        full_heal: None,
        ..fault("pause m1", 0)
    });
    report.verdict = Verdict::judge(&[], &report.faults, [Reason::Aborted("no writes for 30s".into())]);
    report
}

/// Creates the report of a run in which everything fails, with texts that try to break out of each format.
pub(crate) fn failed() -> Report {
    let mut report = passed();
    report.experiment = format!("a & b {SCRIPT}");
    report.commit = format!("\"dirty'\u{0}{SCRIPT}");
    report.faults = vec![fault(&format!("kill {SCRIPT}"), 7), fault("pause m1", 0)];
    report.operations.lost = 23;
    report.operations.phantom = 19;
    report.violations = vec![
        Violation { check: "acknowledged-writes-kept".into(), what: format!("lost ]]> {SCRIPT}") },
        Violation { check: SCRIPT.into(), what: "two\nlines\u{1b}[31m".into() },
    ];
    report.notes.push(format!("note {SCRIPT}"));
    let undecided =
        Reason::Undecided { invariant: Invariant::Linearizable, why: format!("too long {SCRIPT}") };
    report.verdict = Verdict::judge(&report.violations, &report.faults, [undecided]);
    report
}
