//! What a run saw. The runners fill a [`Report`]; the forms below turn it into
//! text for a terminal, a journal for tools, JUnit for a build server and a
//! page for a browser. All of them are pure: the same report, the same bytes.

mod html;
mod journal;
mod junit;
mod latency;
mod markup;
mod micros;
#[cfg(test)]
pub(crate) mod sample;
mod svg;
mod text;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

pub use html::html;
pub use journal::journal;
pub use junit::junit;
pub use latency::Latency;
pub use text::text;

use crate::fault::FaultKind;
use crate::verdict::{Reason, Verdict};

/// Everything a run saw.
///
/// Instants are durations since `started`. In JSON durations are whole
/// microseconds, in fields that end in `Us`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Name of the experiment.
    pub experiment: String,
    /// The seed of all that was random; none when nothing was seeded.
    pub seed: Option<u64>,
    /// The commit of Ephor that was run.
    pub commit: String,
    /// Where it was run.
    pub mode: Mode,
    /// When it began: since the zero of the simulated clock, or since the Unix epoch.
    #[serde(rename = "startedUs", with = "micros")]
    pub started: Duration,
    /// When it ended, on the same clock.
    #[serde(rename = "endedUs", with = "micros")]
    pub ended: Duration,
    /// Whether it passed.
    pub verdict: Verdict,
    /// What was checked, by name: every probe and invariant of the experiment,
    /// whatever came of it.
    pub checks: Vec<String>,
    /// What happened to the scheduled faults, in their order.
    pub faults: Vec<FaultRecord>,
    /// When writes were acknowledged and when not: windows without gaps, in order.
    pub availability: Vec<Window>,
    /// What became of the operations.
    pub operations: Operations,
    /// How long acknowledged operations took.
    pub latency: Latency,
    /// How many leaders were elected after the first.
    pub elections: u64,
    /// What did not hold.
    pub violations: Vec<Violation>,
    /// Anything else a reader should know.
    pub notes: Vec<String>,
}

/// Where an experiment was run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// In `ephor-sim`, on a simulated clock; the seed repeats it exactly.
    Simulated,
    /// On a running cluster.
    Live,
}

impl Mode {
    /// `simulated` or `live`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Simulated => "simulated",
            Self::Live => "live",
        }
    }
}

/// What happened to one scheduled fault. The times of the recovery are since
/// `at`; none is known when it is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FaultRecord {
    /// What it counts as.
    pub kind: FaultKind,
    /// Its line, with the nodes that were struck.
    pub what: String,
    /// When it began.
    #[serde(rename = "atUs", with = "micros")]
    pub at: Duration,
    /// When it was undone; `None` if it never was.
    #[serde(rename = "endedUs", with = "micros::optional", default)]
    pub ended: Option<Duration>,
    /// How often it took effect: messages dropped, processes killed, syncs
    /// delayed. With 0 the run has not tested it.
    pub fired: u64,
    /// Until the rest of the group noticed (a follower called an election).
    #[serde(rename = "detectUs", with = "micros::optional", default)]
    pub detect: Option<Duration>,
    /// Until a new leader was elected.
    #[serde(rename = "electUs", with = "micros::optional", default)]
    pub elect: Option<Duration>,
    /// Until a write that was sent after the fault was acknowledged.
    #[serde(rename = "firstWriteUs", with = "micros::optional", default)]
    pub first_write: Option<Duration>,
    /// Until the fault was undone and all masters had caught up.
    #[serde(rename = "fullHealUs", with = "micros::optional", default)]
    pub full_heal: Option<Duration>,
}

/// A stretch of time in which writes were acknowledged, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// Its begin.
    #[serde(rename = "fromUs", with = "micros")]
    pub from: Duration,
    /// Its end.
    #[serde(rename = "toUs", with = "micros")]
    pub to: Duration,
    /// Whether writes were acknowledged.
    pub available: bool,
}

/// What became of the operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operations {
    /// Promised to the client.
    pub acknowledged: u64,
    /// Denied to the client: they have surely not happened.
    pub refused: u64,
    /// Not answered: they may have happened or not.
    pub unknown: u64,
    /// Not sent, for no connection was there: they have surely not happened.
    pub not_entered: u64,
    /// Acknowledged, and not there at the end.
    pub lost: u64,
    /// There at the end, and by nobody.
    pub phantom: u64,
}

impl Operations {
    /// Each count with its name in reports.
    fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("acknowledged", self.acknowledged),
            ("refused", self.refused),
            ("unknown", self.unknown),
            ("not entered", self.not_entered),
            ("lost", self.lost),
            ("phantom", self.phantom),
        ]
    }
}

/// Something that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// The invariant or the probe.
    pub check: String,
    /// How it did not hold, on one line.
    pub what: String,
}

/// How one check ended.
enum Outcome<'a> {
    Held,
    Violated(Vec<&'a str>),
    Undecided(Vec<&'a str>),
}

impl Report {
    /// How long the run took.
    pub fn duration(&self) -> Duration {
        self.ended.saturating_sub(self.started)
    }

    /// For how much of the time writes were acknowledged, and for how much not.
    pub fn up_and_down(&self) -> (Duration, Duration) {
        let sum = |available: bool| {
            let windows = self.availability.iter().filter(|window| window.available == available);
            windows
                .map(|window| window.to.saturating_sub(window.from))
                .fold(Duration::ZERO, Duration::saturating_add)
        };
        (sum(true), sum(false))
    }

    /// The share of the time in which writes were acknowledged, from 0 to 1;
    /// `None` if nobody looked.
    pub fn availability_share(&self) -> Option<f64> {
        let (up, down) = self.up_and_down();
        let all = up.saturating_add(down);
        (!all.is_zero()).then(|| up.as_secs_f64() / all.as_secs_f64())
    }

    /// Every check with its outcome, in order; those only a violation names come last.
    fn outcomes(&self) -> Vec<(&str, Outcome<'_>)> {
        let mut violated: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for violation in &self.violations {
            violated.entry(&violation.check).or_default().push(&violation.what);
        }
        let mut undecided: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for reason in self.verdict.reasons() {
            if let Reason::Undecided { invariant, why } = reason {
                undecided.entry(invariant.name()).or_default().push(why);
            }
        }
        let unlisted = |check: &&str| !self.checks.iter().any(|listed| listed == check);
        let others: std::collections::BTreeSet<&str> =
            violated.keys().chain(undecided.keys()).copied().filter(unlisted).collect();
        let names = self.checks.iter().map(String::as_str).chain(others);
        let outcome = |name: &str| match (violated.get(name), undecided.get(name)) {
            (Some(what), _) => Outcome::Violated(what.clone()),
            (None, Some(why)) => Outcome::Undecided(why.clone()),
            (None, None) => Outcome::Held,
        };
        names.map(|name| (name, outcome(name))).collect()
    }

    /// Reasons that are no violation of a check and no idle fault, which the
    /// forms show elsewhere.
    fn aborts(&self) -> impl Iterator<Item = &str> {
        self.verdict.reasons().iter().filter_map(|reason| match reason {
            Reason::Aborted(why) => Some(why.as_str()),
            _ => None,
        })
    }
}

/// A duration for people, to three digits or so: `1.24s`, `350ms`, `-` for none.
fn short(duration: Option<Duration>) -> String {
    let Some(duration) = duration else { return "-".to_owned() };
    match duration.as_micros() {
        micros if micros < 1_000 => format!("{micros}us"),
        micros if micros < 10_000 => format!("{:.1}ms", duration.as_secs_f64() * 1e3),
        micros if micros < 1_000_000 => format!("{}ms", duration.as_millis()),
        micros if micros < 100_000_000 => format!("{:.2}s", duration.as_secs_f64()),
        _ => format!("{}s", duration.as_secs()),
    }
}

/// An instant of the run's clock as RFC 3339. A simulated run begins in 1970.
fn rfc3339(instant: Duration) -> String {
    // The last second that RFC 3339 can write.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let time = SystemTime::UNIX_EPOCH.checked_add(instant.min(LAST)).unwrap_or(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_micros(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_comes_back_from_json() {
        for report in [sample::failed(), sample::passed(), sample::unknown()] {
            let json = serde_json::to_string(&report).unwrap();
            assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        }
    }

    #[test]
    fn availability_is_a_share_of_the_time_watched() {
        let report = sample::failed();
        assert_eq!(report.up_and_down(), (Duration::from_secs(57), Duration::from_secs(3)));
        assert_eq!(report.availability_share(), Some(0.95));
        assert_eq!(Report { availability: Vec::new(), ..report }.availability_share(), None);
    }

    #[test]
    fn every_check_has_one_outcome_and_unlisted_ones_come_last() {
        let report = sample::failed();
        let outcomes: Vec<(&str, &str)> = report
            .outcomes()
            .into_iter()
            .map(|(name, outcome)| {
                let word = match outcome {
                    Outcome::Held => "held",
                    Outcome::Violated(_) => "violated",
                    Outcome::Undecided(_) => "undecided",
                };
                (name, word)
            })
            .collect();
        assert_eq!(
            outcomes,
            [
                ("acknowledged-writes-kept", "violated"),
                ("linearizable", "undecided"),
                ("heals", "held"),
                ("<script>alert(1)</script>", "violated")
            ]
        );
    }

    #[test]
    fn durations_are_short_and_instants_never_panic() {
        let of = |micros| short(Some(Duration::from_micros(micros)));
        assert_eq!(short(None), "-");
        assert_eq!(
            [of(7), of(1_240), of(350_900), of(1_240_000), of(125_000_000)],
            ["7us", "1.2ms", "350ms", "1.24s", "125s"]
        );
        assert_eq!(rfc3339(Duration::from_millis(1_500)), "1970-01-01T00:00:01.500000Z");
        assert_eq!(rfc3339(Duration::MAX), "9999-12-31T23:59:59.000000Z");
    }
}
