//! Formats a report as JUnit XML, for build servers: a test case for every check and every fault. The runners
//! write it to a file.

use std::io;

use super::markup::{self, Xml};
use super::{Outcome, Report, rfc3339};

/// Result of a test case: the element in it, and its text.
enum Case {
    Passed,
    Failure(String),
    /// An error; also for an unknown result, since the build must not pass then.
    Error(String),
}

/// Formats the report as XML in UTF-8. A violation is a failure; an undecided check, a fault that never fired
/// and an abort are errors.
///
/// # Errors
/// Fails only if writing to memory does.
pub fn junit(report: &Report) -> io::Result<String> {
    let cases = cases(report);
    let count = |wanted: fn(&Case) -> bool| cases.iter().filter(|(_, case)| wanted(case)).count().to_string();
    let tests = cases.len().to_string();
    let failures = count(|case| matches!(case, Case::Failure(_)));
    let errors = count(|case| matches!(case, Case::Error(_)));
    let time = format!("{:.6}", report.duration().as_secs_f64());
    let began = rfc3339(report.started);
    let totals = [("tests", &*tests), ("failures", &*failures), ("errors", &*errors), ("time", &*time)];
    let mut suite = vec![("name", &*report.experiment), ("timestamp", &*began)];
    suite.extend(totals);
    markup::document("<?xml version=\"1.0\" encoding=\"UTF-8\"?>", |xml| {
        markup::element(xml, "testsuites", &totals, |xml| {
            markup::element(xml, "testsuite", &suite, |xml| {
                properties(xml, report)?;
                cases.iter().try_for_each(|(title, case)| test_case(xml, &report.experiment, title, case))
            })
        })
    })
}

fn cases(report: &Report) -> Vec<(String, Case)> {
    let checks = report.outcomes().into_iter().map(|(name, outcome)| {
        let case = match outcome {
            Outcome::Held => Case::Passed,
            Outcome::Violated(what) => Case::Failure(what.join("\n")),
            Outcome::Undecided(why) => Case::Error(why.join("\n")),
        };
        (name.to_owned(), case)
    });
    let faults = report.faults.iter().map(|fault| {
        let case =
            if fault.fired > 0 { Case::Passed } else { Case::Error("the fault never fired".to_owned()) };
        (format!("fault: {}", fault.what), case)
    });
    let aborts = report.aborts().map(|why| ("run to the end".to_owned(), Case::Error(why.to_owned())));
    checks.chain(faults).chain(aborts).collect()
}

fn properties(xml: &mut Xml, report: &Report) -> io::Result<()> {
    let mut properties = vec![
        ("verdict".to_owned(), report.verdict.word().to_owned()),
        ("mode".to_owned(), report.mode.word().to_owned()),
        ("commit".to_owned(), report.commit.clone()),
        ("elections".to_owned(), report.elections.to_string()),
    ];
    properties.extend(report.seed.map(|seed| ("seed".to_owned(), seed.to_string())));
    let counts = report.operations.named();
    properties.extend(counts.map(|(name, count)| (format!("operations {name}"), count.to_string())));
    markup::element(xml, "properties", &[], |xml| {
        properties
            .iter()
            .try_for_each(|(name, value)| markup::empty(xml, "property", &[("name", name), ("value", value)]))
    })
}

fn test_case(xml: &mut Xml, suite: &str, title: &str, case: &Case) -> io::Result<()> {
    let attributes = [("classname", suite), ("name", title)];
    let (tag, text) = match case {
        Case::Passed => return markup::empty(xml, "testcase", &attributes),
        Case::Failure(text) => ("failure", text),
        Case::Error(text) => ("error", text),
    };
    let message = text.lines().next().unwrap_or_default();
    markup::element(xml, "testcase", &attributes, |xml| markup::leaf(xml, tag, &[("message", message)], text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::markup::tests::elements;
    use crate::report::sample;

    #[test]
    fn a_run_that_passed_is_all_green() {
        let xml = junit(&sample::passed()).unwrap();
        let expected = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="4" failures="0" errors="0" time="60.000000">
 <testsuite name="leader-kill" timestamp="1970-01-01T00:00:00.000000Z" tests="4" failures="0" errors="0" time="60.000000">
  <properties>
   <property name="verdict" value="pass"/>
   <property name="mode" value="simulated"/>
   <property name="commit" value="0123abcd"/>
   <property name="elections" value="29"/>
   <property name="seed" value="987654321"/>
   <property name="operations acknowledged" value="4212"/>
   <property name="operations refused" value="313"/>
   <property name="operations unknown" value="51"/>
   <property name="operations not entered" value="1717"/>
   <property name="operations lost" value="0"/>
   <property name="operations phantom" value="0"/>
  </properties>
  <testcase classname="leader-kill" name="acknowledged-writes-kept"/>
  <testcase classname="leader-kill" name="linearizable"/>
  <testcase classname="leader-kill" name="heals"/>
  <testcase classname="leader-kill" name="fault: kill leader (m2)"/>
 </testsuite>
</testsuites>
"#;
        assert_eq!(xml, expected);
    }

    #[test]
    fn what_failed_is_a_failure_and_what_is_unknown_an_error() {
        let xml = junit(&sample::failed()).unwrap();
        let count = |tag| elements(&xml).iter().filter(|name| *name == tag).count();
        assert_eq!((count("testcase"), count("failure"), count("error")), (6, 2, 2), "{xml}");
        assert!(xml.contains(r#"tests="6" failures="2" errors="2""#), "{xml}");
        assert!(xml.contains(r#"value="23""#) && xml.contains(r#"value="19""#), "{xml}");
        let xml = junit(&sample::unknown()).unwrap();
        assert!(xml.contains(r#"tests="6" failures="0" errors="2""#), "{xml}");
        assert!(xml.contains("no writes for 30s"), "{xml}");
    }

    #[test]
    fn no_text_breaks_out() {
        let xml = junit(&sample::failed()).unwrap();
        assert!(!xml.contains("<script"), "{xml}");
        assert!(xml.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{xml}");
        assert!(!xml.contains("]]>"), "forbidden in text: {xml}");
        assert!(!xml.chars().any(|char| char.is_control() && char != '\n'), "{xml:?}");
    }
}
