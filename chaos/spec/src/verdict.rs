//! Decides whether a run has passed. The runner gives what it found; the verdict goes into the
//! [`Report`](crate::Report). There is no score: one violation fails a run, and what was not tested is
//! unknown, never passed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::experiment::Invariant;
use crate::report::{FaultRecord, Violation};

/// Outcome of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "outcome", content = "reasons")]
pub enum Verdict {
    /// Every fault fired, and every check held.
    Pass,
    /// A check did not hold. Violations come first, then the reasons that leave the rest of the run unknown.
    Fail(Vec<Reason>),
    /// No check was violated, but the run does not prove all that it should.
    Unknown(Vec<Reason>),
}

/// Reason why a run has not passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// An invariant or a probe did not hold.
    Violated(Violation),
    /// A scheduled fault never fired; holds the fault as one line.
    NeverFired(String),
    /// An invariant could not be decided.
    #[serde(rename_all = "camelCase")]
    Undecided {
        /// The invariant.
        invariant: Invariant,
        /// Reason why it could not be decided.
        why: String,
    },
    /// The run ended early, with the reason.
    Aborted(String),
}

impl Reason {
    fn is_violation(&self) -> bool {
        matches!(self, Self::Violated(_))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violated(violation) => write!(f, "{}: {}", violation.check, violation.what),
            Self::NeverFired(what) => write!(f, "the fault never fired: {what}"),
            Self::Undecided { invariant, why } => write!(f, "{invariant} could not be decided: {why}"),
            Self::Aborted(why) => write!(f, "the run was aborted: {why}"),
        }
    }
}

impl Verdict {
    /// Returns the verdict for these reasons: `Fail` if any is a violation, `Unknown` if there are only
    /// others, `Pass` if there are none.
    pub fn from_reasons(mut reasons: Vec<Reason>) -> Self {
        // The sort is stable: violations first, both parts in the order found.
        reasons.sort_by_key(|reason| !reason.is_violation());
        match reasons.first() {
            None => Self::Pass,
            Some(first) if first.is_violation() => Self::Fail(reasons),
            Some(_) => Self::Unknown(reasons),
        }
    }

    /// Returns the verdict on a run from its violations, its scheduled faults and other reasons (an undecided
    /// invariant, an abort).
    pub fn judge(
        violations: &[Violation],
        faults: &[FaultRecord],
        others: impl IntoIterator<Item = Reason>,
    ) -> Self {
        let violated = violations.iter().cloned().map(Reason::Violated);
        let idle = faults.iter().filter(|fault| fault.fired == 0);
        let idle = idle.map(|fault| Reason::NeverFired(fault.what.clone()));
        Self::from_reasons(violated.chain(idle).chain(others).collect())
    }

    /// Combines the verdicts on two runs, or on two parts of one run.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let mut reasons = self.into_reasons();
        reasons.extend(other.into_reasons());
        Self::from_reasons(reasons)
    }

    /// Returns why the run has not passed; empty if it has.
    pub fn reasons(&self) -> &[Reason] {
        match self {
            Self::Pass => &[],
            Self::Fail(reasons) | Self::Unknown(reasons) => reasons,
        }
    }

    /// Returns `pass`, `fail` or `unknown`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail(_) => "fail",
            Self::Unknown(_) => "unknown",
        }
    }

    fn into_reasons(self) -> Vec<Reason> {
        match self {
            Self::Pass => Vec::new(),
            Self::Fail(reasons) | Self::Unknown(reasons) => reasons,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;
    use crate::report::sample;

    fn violated(what: &str) -> Reason {
        Reason::Violated(Violation { check: "linearizable".into(), what: what.into() })
    }

    fn undecided() -> Reason {
        Reason::Undecided { invariant: Invariant::Linearizable, why: "the search took too long".into() }
    }

    #[test]
    fn nothing_against_it_passes() {
        assert_eq!(Verdict::judge(&[], &[sample::fault("kill leader", 1)], []), Verdict::Pass);
    }

    #[test]
    fn a_violation_fails_whatever_else_is_unknown() {
        let violation = Violation { check: "no-phantoms".into(), what: "a key nobody wrote".into() };
        let idle = [sample::fault("kill leader", 0)];
        let verdict = Verdict::judge(std::slice::from_ref(&violation), &idle, [undecided()]);
        let reasons =
            vec![Reason::Violated(violation), Reason::NeverFired("kill leader".into()), undecided()];
        assert_eq!(verdict, Verdict::Fail(reasons));
    }

    #[test]
    fn a_fault_that_never_fired_makes_it_unknown() {
        let faults = [sample::fault("kill leader", 3), sample::fault("pause m1", 0)];
        let verdict = Verdict::judge(&[], &faults, []);
        assert_eq!(verdict, Verdict::Unknown(vec![Reason::NeverFired("pause m1".into())]));
        assert_eq!(verdict.reasons()[0].to_string(), "the fault never fired: pause m1");
    }

    #[test]
    fn an_undecided_invariant_or_an_abort_makes_it_unknown() {
        let verdict = Verdict::judge(&[], &[], [undecided(), Reason::Aborted("no writes for 30s".into())]);
        let lines: Vec<String> = verdict.reasons().iter().map(Reason::to_string).collect();
        assert_eq!(verdict.word(), "unknown");
        assert_eq!(
            lines,
            [
                "linearizable could not be decided: the search took too long",
                "the run was aborted: no writes for 30s"
            ]
        );
    }

    #[test]
    fn the_worse_of_two_wins_and_keeps_all_reasons() {
        let unknown = Verdict::Unknown(vec![undecided()]);
        let fail = Verdict::Fail(vec![violated("a stale read")]);
        assert_eq!(Verdict::Pass.and(Verdict::Pass), Verdict::Pass);
        assert_eq!(Verdict::Pass.and(unknown.clone()), unknown);
        let both = Verdict::Fail(vec![violated("a stale read"), undecided()]);
        assert_eq!(unknown.clone().and(fail.clone()), both);
        assert_eq!(fail.and(unknown), both);
    }

    #[test]
    fn verdicts_come_back_from_json() {
        assert_eq!(to_value(Verdict::Pass).unwrap(), json!({ "outcome": "pass" }));
        let fail = Verdict::Fail(vec![violated("x"), undecided()]);
        assert_eq!(from_value::<Verdict>(to_value(&fail).unwrap()).unwrap(), fail);
    }
}
