//! Formats a report as one self-contained HTML page: no script, and no font or picture from elsewhere. The
//! runners write it to a file.

use std::io;
use std::time::Duration;

use quick_xml::events::BytesText;

use super::markup::{self, Xml, element, empty, leaf};
use super::{Outcome, Report, rfc3339, short, svg};

/// Maximum number of violations and reasons shown; the journal has them all.
const SHOWN: usize = 200;

/// Content security policy: nothing is loaded and no script runs, whatever text the report contains.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

const STYLE: &str = "
:root { --bg: #fff; --fg: #1f2328; --dim: #59636e; --line: #d1d9e0; --good: #1a7f37; --bad: #cf222e;
  --unsure: #9a6700; --fault: #8250df; --bar: #0969da; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --bg: #0d1117; --fg: #e6edf3; --dim: #9198a1; --line: #3d444d;
  --good: #3fb950; --bad: #f85149; --unsure: #d29922; --fault: #ab7df8; --bar: #4493f8; } }
body { background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, sans-serif; max-width: 1060px;
  margin: 2em auto; padding: 0 1em; overflow-wrap: anywhere; }
h1 { font-size: 1.6em; margin-bottom: 0; } h2 { font-size: 1.15em; margin: 2em 0 .5em; }
.dim { color: var(--dim); } .pass { color: var(--good); } .fail { color: var(--bad); }
.unknown { color: var(--unsure); }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3em .8em .3em 0;
  border-bottom: 1px solid var(--line); vertical-align: top; } th { color: var(--dim); font-weight: 500; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.wide { overflow-x: auto; } svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--fg); font: 12px system-ui, sans-serif; }
svg .axis { fill: var(--dim); font-size: 11px; }
.grid { stroke: var(--line); } .up { fill: var(--good); opacity: .55; } .down { fill: var(--bad); }
.fault { fill: var(--fault); opacity: .75; }
.idle { fill: none; stroke: var(--unsure); stroke-dasharray: 4 3; }
.mark { stroke: var(--fg); stroke-width: 2; } .bar { fill: var(--bar); }
";

/// Formats the report as a page in UTF-8 that is also well-formed XML.
///
/// # Errors
/// Fails only if writing to memory does.
pub fn html(report: &Report) -> io::Result<String> {
    markup::document("<!doctype html>", |xml| {
        element(xml, "html", &[("lang", "en")], |xml| {
            element(xml, "head", &[], |xml| head(xml, report))?;
            element(xml, "body", &[], |xml| body(xml, report))
        })
    })
}

fn head(xml: &mut Xml, report: &Report) -> io::Result<()> {
    empty(xml, "meta", &[("charset", "utf-8")])?;
    empty(xml, "meta", &[("http-equiv", "Content-Security-Policy"), ("content", POLICY)])?;
    empty(xml, "meta", &[("name", "viewport"), ("content", "width=device-width, initial-scale=1")])?;
    leaf(xml, "title", &[], &format!("{}: {}", report.experiment, report.verdict.word()))?;
    xml.create_element("style").write_text_content(BytesText::from_escaped(STYLE))?;
    Ok(())
}

fn body(xml: &mut Xml, report: &Report) -> io::Result<()> {
    title(xml, report)?;
    let reasons = report.verdict.reasons().iter().map(ToString::to_string);
    list(xml, "Why", reasons.collect())?;
    leaf(xml, "h2", &[], "Timeline")?;
    svg::timeline(xml, report)?;
    faults(xml, report)?;
    latency(xml, report)?;
    figures(xml, report)?;
    checks(xml, report)?;
    let violations = report.violations.iter().map(|v| format!("{}: {}", v.check, v.what));
    list(xml, "Violations", violations.collect())?;
    list(xml, "Notes", report.notes.clone())
}

fn title(xml: &mut Xml, report: &Report) -> io::Result<()> {
    let word = report.verdict.word();
    element(xml, "h1", &[], |xml| {
        leaf(xml, "span", &[("class", word)], &word.to_uppercase())?;
        leaf(xml, "span", &[], &format!(" {}", report.experiment))
    })?;
    let seed = report.seed.map_or_else(String::new, |seed| format!(", seed {seed}"));
    let (mode, commit) = (report.mode.word(), &report.commit);
    let (from, took) = (rfc3339(report.started), short(Some(report.duration())));
    leaf(xml, "p", &[("class", "dim")], &format!("{mode}, commit {commit}{seed}, from {from} for {took}"))
}

/// Writes a list under a heading; nothing if the list is empty.
fn list(xml: &mut Xml, heading: &str, items: Vec<String>) -> io::Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    leaf(xml, "h2", &[], heading)?;
    element(xml, "ul", &[], |xml| {
        items.iter().take(SHOWN).try_for_each(|item| leaf(xml, "li", &[], item))?;
        match items.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => leaf(xml, "li", &[("class", "dim")], &format!("and {more} more, see the journal")),
        }
    })
}

/// Writes a table; a title that ends in a space marks a column of numbers.
fn table(xml: &mut Xml, titles: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> io::Result<()> {
    let class = |column: usize| match titles.get(column) {
        Some(title) if title.ends_with(' ') => [("class", "n")],
        _ => [("class", "t")],
    };
    element(xml, "div", &[("class", "wide")], |xml| {
        element(xml, "table", &[], |xml| {
            element(xml, "tr", &[], |xml| {
                let mut titles = titles.iter().enumerate();
                titles.try_for_each(|(column, title)| leaf(xml, "th", &class(column), title.trim_end()))
            })?;
            rows.into_iter().try_for_each(|row| {
                element(xml, "tr", &[], |xml| {
                    let mut cells = row.iter().enumerate();
                    cells.try_for_each(|(column, cell)| leaf(xml, "td", &class(column), cell))
                })
            })
        })
    })
}

fn faults(xml: &mut Xml, report: &Report) -> io::Result<()> {
    if report.faults.is_empty() {
        return Ok(());
    }
    leaf(xml, "h2", &[], "Faults and recovery")?;
    let titles = [
        "fault",
        "kind",
        "at ",
        "ended ",
        "fired ",
        "detected after ",
        "elected after ",
        "first write after ",
        "healed after ",
    ];
    let rows = report.faults.iter().map(|fault| {
        vec![
            fault.what.clone(),
            fault.kind.to_string(),
            short(Some(fault.at)),
            short(fault.ended),
            fault.fired.to_string(),
            short(fault.detect),
            short(fault.elect),
            short(fault.first_write),
            short(fault.full_heal),
        ]
    });
    table(xml, &titles, rows)
}

fn latency(xml: &mut Xml, report: &Report) -> io::Result<()> {
    if report.latency.count() == 0 {
        return Ok(());
    }
    leaf(xml, "h2", &[], "Latency of acknowledged operations")?;
    let quantile = |share| match report.latency.quantile(share) {
        Some(Duration::MAX) => "more than 70s".to_owned(),
        bound => short(bound),
    };
    let (p50, p99, all) = (quantile(0.5), quantile(0.99), quantile(1.0));
    let words = format!("Half within {p50}, 99% within {p99}, all within {all}. Heights are logarithmic.");
    leaf(xml, "p", &[("class", "dim")], &words)?;
    svg::histogram(xml, &report.latency)
}

fn figures(xml: &mut Xml, report: &Report) -> io::Result<()> {
    leaf(xml, "h2", &[], "Figures")?;
    let counts = report.operations.named().map(|(name, n)| vec![format!("operations {name}"), n.to_string()]);
    let mut rows = counts.to_vec();
    rows.push(vec!["elections".to_owned(), report.elections.to_string()]);
    if let Some(share) = report.availability_share() {
        rows.push(vec!["availability".to_owned(), format!("{:.2}%", share * 100.0)]);
        rows.push(vec!["not available for".to_owned(), short(Some(report.up_and_down().1))]);
    }
    table(xml, &["what", "how much "], rows)
}

fn checks(xml: &mut Xml, report: &Report) -> io::Result<()> {
    leaf(xml, "h2", &[], "Checks")?;
    let rows = report.outcomes().into_iter().map(|(name, outcome)| {
        let outcome = match outcome {
            Outcome::Held => "held".to_owned(),
            Outcome::Violated(what) => format!("violated, {} times", what.len()),
            Outcome::Undecided(why) => format!("undecided: {}", why.join("; ")),
        };
        vec![name.to_owned(), outcome]
    });
    table(xml, &["check", "outcome"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::markup::tests::elements;
    use crate::report::{Violation, sample};

    #[test]
    fn the_page_is_whole_and_needs_nothing_else() {
        for report in [sample::passed(), sample::unknown(), sample::failed()] {
            let page = html(&report).unwrap();
            let names = elements(&page);
            assert_eq!(names.iter().filter(|name| *name == "svg").count(), 2);
            for banned in ["script", "link", "img", "iframe", "image", "use", "foreignObject", "a"] {
                assert!(!names.iter().any(|name| name == banned), "{banned}");
            }
            for banned in ["http:", "https:", "url(", "@import", "src=", "href=", " on"] {
                let attributes = page.split("<body>").next().unwrap();
                assert!(!attributes.contains(banned), "{banned} in the head");
            }
            assert!(!page.contains("url(") && !page.contains("href="));
        }
    }

    #[test]
    fn no_text_breaks_out() {
        let page = html(&sample::failed()).unwrap();
        assert!(!page.contains("<script"), "{page}");
        // In the title, the heading, the subtitle, why, timeline, faults, checks, violations and notes.
        assert!(page.matches("&lt;script&gt;alert(1)&lt;/script&gt;").count() >= 9, "{page}");
        assert!(page.contains("a &amp; b"), "{page}");
    }

    #[test]
    fn all_counts_appear() {
        let page = html(&sample::failed()).unwrap();
        for count in ["4212", "313", "51", "1717", "23", "19", "29"] {
            assert!(page.contains(&format!("<td class=\"n\">{count}</td>")), "{count}");
        }
        for cell in ["310ms", "620ms", "730ms", "11.84s", "95.00%", "3.00s", "7", "kill"] {
            assert!(page.contains(&format!(">{cell}</td>")), "{cell}");
        }
        assert!(page.contains("seed 987654321"));
        assert!(
            page.contains("undecided: too long")
                && page.contains("violated, 1 times")
                && page.contains(">held<")
        );
    }

    #[test]
    fn the_verdict_comes_first() {
        for (report, word) in
            [(sample::passed(), "pass"), (sample::unknown(), "unknown"), (sample::failed(), "fail")]
        {
            let page = html(&report).unwrap();
            let body = page.split_once("<body>").unwrap().1;
            let heading = format!("<span class=\"{word}\">{}</span>", word.to_uppercase());
            assert!(
                body.trim_start().trim_start_matches("<h1>").trim_start().starts_with(&heading),
                "{body}"
            );
        }
    }

    #[test]
    fn what_is_not_there_has_no_heading_and_what_is_much_is_cut() {
        let mut report = sample::passed();
        report.notes.clear();
        let page = html(&report).unwrap();
        assert!(!page.contains("Violations") && !page.contains("Notes") && !page.contains("Why"));
        report.violations =
            (0..1_000).map(|i| Violation { check: "heals".into(), what: format!("no {i}.") }).collect();
        let page = html(&report).unwrap();
        assert!(page.contains("heals: no 199.") && !page.contains("heals: no 200."));
        assert!(page.contains("and 800 more, see the journal"));
    }
}
