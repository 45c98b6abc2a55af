//! Report of a run. The runners fill a [`Report`]; the submodules format it as text for a terminal, a journal
//! for tools, JUnit for a build server and an HTML page. All formats are pure: the same report gives the same
//! bytes.

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

/// Everything that a run saw.
///
/// Instants are durations since `started`. In JSON durations are whole
/// microseconds, in fields that end in `Us`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Name of the experiment.
    pub experiment: String,
    /// Seed of all random choices; `None` if nothing was seeded.
    pub seed: Option<u64>,
    /// Commit of Ephor that was run.
    pub commit: String,
    /// Where the experiment was run.
    pub mode: Mode,
    /// When the run began: since the zero of the simulated clock, or since the Unix epoch.
    #[serde(rename = "startedUs", with = "micros")]
    pub started: Duration,
    /// When the run ended, on the same clock.
    #[serde(rename = "endedUs", with = "micros")]
    pub ended: Duration,
    /// Outcome of the run.
    pub verdict: Verdict,
    /// Names of all checks: every probe and invariant of the experiment, whatever its outcome.
    pub checks: Vec<String>,
    /// Results of the scheduled faults, in their order.
    pub faults: Vec<FaultRecord>,
    /// Windows in which writes were acknowledged or not, in order and without gaps.
    pub availability: Vec<Window>,
    /// Numbers of operations by outcome.
    pub operations: Operations,
    /// Latencies of acknowledged operations.
    pub latency: Latency,
    /// Number of leaders elected after the first.
    pub elections: u64,
    /// What did not hold, one violation each.
    pub violations: Vec<Violation>,
    /// Other notes for the reader.
    pub notes: Vec<String>,
}

/// Where an experiment was run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// In `ephor-sim`, on a simulated clock; a run with the same seed is exactly the same.
    Simulated,
    /// On a live cluster.
    Live,
}

impl Mode {
    /// Returns `simulated` or `live`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Simulated => "simulated",
            Self::Live => "live",
        }
    }
}

/// Result of one scheduled fault. Recovery times are since `at`; `None` if unknown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FaultRecord {
    /// Kind that the fault counts as.
    pub kind: FaultKind,
    /// The fault as one line, with the nodes that were struck.
    pub what: String,
    /// When the fault began.
    #[serde(rename = "atUs", with = "micros")]
    pub at: Duration,
    /// When the fault was undone; `None` if it never was.
    #[serde(rename = "endedUs", with = "micros::optional", default)]
    pub ended: Option<Duration>,
    /// Number of times the fault took effect: messages dropped, processes killed, syncs delayed. With 0 the
    /// run has not tested the fault.
    pub fired: u64,
    /// Time until the other masters noticed (a follower called an election).
    #[serde(rename = "detectUs", with = "micros::optional", default)]
    pub detect: Option<Duration>,
    /// Time until a new leader was elected.
    #[serde(rename = "electUs", with = "micros::optional", default)]
    pub elect: Option<Duration>,
    /// Time until a write that was sent after the fault was acknowledged.
    #[serde(rename = "firstWriteUs", with = "micros::optional", default)]
    pub first_write: Option<Duration>,
    /// Time until the fault was undone and all masters had caught up.
    #[serde(rename = "fullHealUs", with = "micros::optional", default)]
    pub full_heal: Option<Duration>,
}

/// A span of time in which writes were acknowledged, or were not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// Begin of the window.
    #[serde(rename = "fromUs", with = "micros")]
    pub from: Duration,
    /// End of the window.
    #[serde(rename = "toUs", with = "micros")]
    pub to: Duration,
    /// Whether writes were acknowledged.
    pub available: bool,
}

/// Numbers of operations by outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operations {
    /// Operations that were acknowledged.
    pub acknowledged: u64,
    /// Operations that were refused: they certainly had no effect.
    pub refused: u64,
    /// Operations that were not answered: they may have had an effect or not.
    pub unknown: u64,
    /// Operations that never entered the system, as without a connection: they certainly had no effect.
    pub not_entered: u64,
    /// Acknowledged writes that are not there at the end.
    pub lost: u64,
    /// Values that are there at the end though no client wrote them.
    pub phantom: u64,
}

impl Operations {
    /// Returns each count with its name in reports.
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

/// A check that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// Name of the invariant or probe.
    pub check: String,
    /// How the check did not hold, on one line.
    pub what: String,
}

/// Outcome of one check.
enum Outcome<'a> {
    Held,
    Violated(Vec<&'a str>),
    Undecided(Vec<&'a str>),
}

impl Report {
    /// Returns the duration of the run.
    pub fn duration(&self) -> Duration {
        self.ended.saturating_sub(self.started)
    }

    /// Returns for how long writes were acknowledged, and for how long not.
    pub fn up_and_down(&self) -> (Duration, Duration) {
        let sum = |available: bool| {
            let windows = self.availability.iter().filter(|window| window.available == available);
            windows
                .map(|window| window.to.saturating_sub(window.from))
                .fold(Duration::ZERO, Duration::saturating_add)
        };
        (sum(true), sum(false))
    }

    /// Returns the share of the time in which writes were acknowledged, from 0 to 1; `None` if there are no
    /// windows.
    pub fn availability_share(&self) -> Option<f64> {
        let (up, down) = self.up_and_down();
        let all = up.saturating_add(down);
        (!all.is_zero()).then(|| up.as_secs_f64() / all.as_secs_f64())
    }

    /// Returns every check with its outcome, in order; checks that only a violation names come last.
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

    /// Returns the reasons for the verdict that are neither a violation of a check nor a fault that never
    /// fired, which the formats show elsewhere.
    fn aborts(&self) -> impl Iterator<Item = &str> {
        self.verdict.reasons().iter().filter_map(|reason| match reason {
            Reason::Aborted(why) => Some(why.as_str()),
            _ => None,
        })
    }
}

/// Formats a duration for people, with about three digits: `1.24s`, `350ms`, `-` for `None`.
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

/// Formats an instant of the run's clock as RFC 3339; a simulated run begins in 1970.
fn rfc3339(instant: Duration) -> String {
    // Latest second that RFC 3339 can express.
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
