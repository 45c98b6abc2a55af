//! Formats a report as JSON like the journal of Chaos Toolkit (what `chaos run` writes to `journal.json`), so
//! that its tools can read it. The whole [`Report`] is under `ephor`. The runners write it to a file.

use std::time::Duration;

use serde_json::{Value, json};

use super::{FaultRecord, Outcome, Report, rfc3339};
use crate::verdict::Verdict;

/// Version of chaoslib whose journal format this follows; tools check it.
const CHAOSLIB: &str = "1.42.0";

/// Formats a report as a journal. `status` is `completed`, `failed`, or for an unknown verdict `aborted`;
/// `deviated` says whether a check did not hold. Times are RFC 3339; `duration` is in seconds.
///
/// # Errors
/// Fails only if the report cannot be JSON; no such case is known.
pub fn journal(report: &Report) -> Result<Value, serde_json::Error> {
    let status = match report.verdict {
        Verdict::Pass => "completed",
        Verdict::Fail(_) => "failed",
        Verdict::Unknown(_) => "aborted",
    };
    Ok(json!({
        "chaoslib-version": CHAOSLIB,
        "platform": format!("ephor {}", env!("CARGO_PKG_VERSION")),
        "node": report.mode.word(),
        "experiment": {
            "title": report.experiment,
            "description": format!("commit {}", report.commit),
            "method": report.faults.iter().map(activity).collect::<Vec<_>>(),
        },
        "start": rfc3339(report.started),
        "status": status,
        "deviated": matches!(report.verdict, Verdict::Fail(_)),
        "steady_states": { "before": null, "after": steady_state(report), "during": [] },
        "run": report.faults.iter().map(|fault| run(report, fault)).collect::<Vec<_>>(),
        "rollbacks": [],
        "end": rfc3339(report.ended),
        "duration": report.duration().as_secs_f64(),
        "ephor": serde_json::to_value(report)?,
    }))
}

/// Formats a fault as an action of the experiment's method.
fn activity(fault: &FaultRecord) -> Value {
    json!({ "type": "action", "name": fault.what, "provider": { "type": "ephor", "fault": fault.kind } })
}

/// Formats the result of a fault; one that never fired has failed.
fn run(report: &Report, fault: &FaultRecord) -> Value {
    let instant = |since: Duration| rfc3339(report.started.saturating_add(since));
    json!({
        "activity": activity(fault),
        "status": if fault.fired > 0 { "succeeded" } else { "failed" },
        "output": { "fired": fault.fired },
        "start": instant(fault.at),
        "end": fault.ended.map(instant),
        "duration": fault.ended.map(|ended| ended.saturating_sub(fault.at).as_secs_f64()),
    })
}

/// Formats the checks as the probes of a steady state.
fn steady_state(report: &Report) -> Value {
    let outcomes = report.outcomes();
    let met = outcomes.iter().all(|(_, outcome)| matches!(outcome, Outcome::Held));
    let probes = outcomes.iter().map(|(name, outcome)| {
        let (status, output) = match outcome {
            Outcome::Held => ("succeeded", Value::Null),
            Outcome::Violated(what) => ("failed", json!(what)),
            Outcome::Undecided(why) => ("aborted", json!(why)),
        };
        json!({
            "activity": { "type": "probe", "name": name },
            "status": status,
            "output": output,
            "tolerance_met": matches!(outcome, Outcome::Held),
        })
    });
    json!({ "steady_state_met": met, "probes": probes.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn the_shape_is_that_of_chaos_toolkit() {
        let journal = journal(&sample::failed()).unwrap();
        let keys: std::collections::BTreeSet<&str> =
            journal.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = [
            "chaoslib-version",
            "deviated",
            "duration",
            "end",
            "ephor",
            "experiment",
            "node",
            "platform",
            "rollbacks",
            "run",
            "start",
            "status",
            "steady_states",
        ];
        assert_eq!(keys.into_iter().collect::<Vec<_>>(), expected);
        assert_eq!(journal["status"], "failed");
        assert_eq!(journal["deviated"], true);
        assert_eq!(journal["duration"], 60.0);
        assert_eq!(journal["run"][0]["status"], "succeeded");
        assert_eq!(journal["run"][0]["activity"]["provider"]["fault"], "kill");
        assert_eq!(journal["run"][0]["start"], "1970-01-01T00:00:10.000000Z");
        assert_eq!(journal["run"][0]["duration"], 10.0);
        assert_eq!(journal["run"][1]["status"], "failed", "it never fired");
        let after = &journal["steady_states"]["after"];
        assert_eq!(after["steady_state_met"], false);
        let statuses: Vec<&Value> =
            after["probes"].as_array().unwrap().iter().map(|p| &p["status"]).collect();
        assert_eq!(statuses, ["failed", "aborted", "succeeded", "failed"]);
    }

    #[test]
    fn the_verdict_is_a_status() {
        let passed = journal(&sample::passed()).unwrap();
        assert_eq!((&passed["status"], &passed["deviated"]), (&json!("completed"), &json!(false)));
        assert_eq!(passed["steady_states"]["after"]["steady_state_met"], true);
        let unknown = journal(&sample::unknown()).unwrap();
        assert_eq!((&unknown["status"], &unknown["deviated"]), (&json!("aborted"), &json!(false)));
        assert_eq!(unknown["run"][1]["end"], Value::Null);
        assert_eq!(unknown["start"], "2026-01-01T00:00:00.000000Z");
    }

    #[test]
    fn the_whole_report_is_in_it() {
        let report = sample::failed();
        let journal = journal(&report).unwrap();
        assert_eq!(serde_json::from_value::<Report>(journal["ephor"].clone()).unwrap(), report);
        assert_eq!(journal["ephor"]["operations"]["notEntered"], 1_717);
        assert_eq!(journal["ephor"]["latency"], json!([[1_000, 4_211], [50_000, 1]]));
        assert_eq!(journal["ephor"]["faults"][0]["firstWriteUs"], 730_000);
    }
}
