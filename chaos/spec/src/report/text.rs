//! Formats a report for a terminal: the verdict and its reasons first, then the figures. The runners print
//! it.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Report, rfc3339, short};

/// Maximum number of violations and reasons printed; the journal has them all.
const SHOWN: usize = 20;

/// Formats the report as text without colours, 110 columns wide if the texts allow it. Control characters are
/// shown escaped, so that they cannot control a terminal.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    head(&mut out, report);
    reasons(&mut out, report);
    faults(&mut out, report);
    figures(&mut out, report);
    for note in &report.notes {
        line(&mut out, &format!("note: {note}"));
    }
    out
}

/// Appends a text as exactly one line.
fn line(out: &mut String, text: &str) {
    for char in text.trim_end().chars() {
        match char.is_control() {
            true => out.extend(char.escape_default()),
            false => out.push(char),
        }
    }
    out.push('\n');
}

fn head(out: &mut String, report: &Report) {
    line(out, &format!("{}  {}", report.verdict.word().to_uppercase(), report.experiment));
    let mut how = format!("{}, commit {}", report.mode.word(), report.commit);
    if let Some(seed) = report.seed {
        _ = write!(how, ", seed {seed}");
    }
    let took = short(Some(report.duration()));
    line(out, &format!("{how}, from {} for {took}", rfc3339(report.started)));
}

fn reasons(out: &mut String, report: &Report) {
    let reasons = report.verdict.reasons();
    for reason in reasons.iter().take(SHOWN) {
        line(out, &format!("  {reason}"));
    }
    if let Some(more) = reasons.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        line(out, &format!("  and {more} more, see the journal"));
    }
}

fn faults(out: &mut String, report: &Report) {
    if report.faults.is_empty() {
        return;
    }
    out.push('\n');
    let titles = ["at", "ended", "fired", "detect", "elect", "write", "healed"];
    let row = |cells: [String; 7], what: &str| {
        let mut row = String::new();
        for cell in cells {
            _ = write!(row, "{cell:>8}  ");
        }
        row + what
    };
    line(out, &row(titles.map(str::to_owned), "fault"));
    for fault in &report.faults {
        let cells = [
            short(Some(fault.at)),
            short(fault.ended),
            fault.fired.to_string(),
            short(fault.detect),
            short(fault.elect),
            short(fault.first_write),
            short(fault.full_heal),
        ];
        line(out, &row(cells, &fault.what));
    }
}

fn figures(out: &mut String, report: &Report) {
    out.push('\n');
    let counts = report.operations.named().map(|(name, count)| format!("{count} {name}"));
    line(out, &format!("operations    {}", counts.join(", ")));
    let latency = &report.latency;
    if latency.count() > 0 {
        let quantile = |share| match latency.quantile(share) {
            Some(Duration::MAX) => "more than 70s".to_owned(),
            bound => short(bound),
        };
        let (p50, p99, all) = (quantile(0.5), quantile(0.99), quantile(1.0));
        line(out, &format!("latency       half within {p50}, 99% within {p99}, all within {all}"));
    }
    if let Some(share) = report.availability_share() {
        let down = report.up_and_down().1;
        line(out, &format!("availability  {:.2}%, down for {}", share * 100.0, short(Some(down))));
    }
    line(out, &format!("elections     {}", report.elections));
    let (held, all) = (
        report.outcomes().iter().filter(|(_, o)| matches!(o, super::Outcome::Held)).count(),
        report.outcomes().len(),
    );
    line(out, &format!("checks        {held} of {all} held, {} violations", report.violations.len()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;
    use crate::verdict::{Reason, Verdict};

    #[test]
    fn a_run_that_passed_reads_so() {
        assert_eq!(
            text(&sample::passed()),
            "\
PASS  leader-kill
simulated, commit 0123abcd, seed 987654321, from 1970-01-01T00:00:00.000000Z for 60.00s

      at     ended     fired    detect     elect     write    healed  fault
  10.00s    20.00s         1     310ms     620ms     730ms    11.84s  kill leader (m2)

operations    4212 acknowledged, 313 refused, 51 unknown, 1717 not entered, 0 lost, 0 phantom
latency       half within 1.0ms, 99% within 1.0ms, all within 50ms
availability  95.00%, down for 3.00s
elections     29
checks        3 of 3 held, 0 violations
note: the clock was simulated
"
        );
    }

    #[test]
    fn a_run_that_failed_says_first_why() {
        let text = text(&sample::failed());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "FAIL  a & b <script>alert(1)</script>");
        assert_eq!(lines[2], "  acknowledged-writes-kept: lost ]]> <script>alert(1)</script>");
        assert_eq!(lines[3], "  <script>alert(1)</script>: two\\nlines\\u{1b}[31m");
        assert_eq!(lines[4], "  the fault never fired: pause m1");
        assert_eq!(lines[5], "  linearizable could not be decided: too long <script>alert(1)</script>");
        assert!(text.contains("23 lost, 19 phantom"), "{text}");
        assert!(text.contains("1 of 4 held, 2 violations"), "{text}");
        assert!(!text.chars().any(|char| char.is_control() && char != '\n'), "{text:?}");
    }

    #[test]
    fn what_is_unknown_is_a_dash() {
        let text = text(&sample::unknown());
        assert!(
            text.starts_with("UNKNOWN  leader-kill\nlive, commit 0123abcd, from 2026-01-01T00:00:00.000000Z"),
            "{text}"
        );
        assert!(
            text.contains("  10.00s         -         0         -         -         -         -  pause m1"),
            "{text}"
        );
        assert!(text.contains("  the run was aborted: no writes for 30s"), "{text}");
    }

    #[test]
    fn a_thousand_reasons_are_not_printed() {
        let mut report = sample::passed();
        report.verdict =
            Verdict::from_reasons((0..1_000).map(|i| Reason::Aborted(format!("why {i}"))).collect());
        let text = text(&report);
        assert!(
            text.contains("why 19\n  and 980 more, see the journal\n") && !text.contains("why 20"),
            "{text}"
        );
    }
}
