//! The printer of Pods: ready containers, status (the reason for waiting or ending), and restarts.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, Cell, Column, Doc, NAME, Printer, age, fixed};
use crate::registry::kinds::json_fields::{self, JsonFields};

pub(super) static POD: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Ready", Doc::Text("The aggregate readiness state of this pod for accepting traffic.")),
        Column::text("Status", Doc::Text("The aggregate status of the containers in this pod.")),
        Column::text(
            "Restarts",
            Doc::Text(
                "The number of times the containers in this pod have been restarted and when the last container \
                 in this pod has restarted.",
            ),
        ),
        AGE,
        Column::wide("IP", Doc::Field("core/v1.PodStatus", "podIP")),
        Column::wide("Node", Doc::Field("core/v1.PodSpec", "nodeName")),
        Column::wide("Nominated Node", Doc::Field("core/v1.PodStatus", "nominatedNodeName")),
        Column::wide("Readiness Gates", Doc::Field("core/v1.PodSpec", "readinessGates")),
    ],
    cells,
};

/// Number of restarts and the time of the last one.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += status.int("restartCount");
        let finished = status.sub("lastState").sub("terminated").text("finishedAt");
        self.last = self.last.max(finished.parse().ok());
    }

    fn shown(&self) -> Cell {
        match self.last.filter(|_| self.count != 0) {
            Some(time) => Cell::Ago { before: format!("{} (", self.count), time, after: " ago)" },
            None => fixed(self.count.to_string()),
        }
    }
}

/// Ready count, status and restarts, computed from the container statuses.
struct Summary {
    ready: usize,
    reason: String,
    restarts: Restarts,
}

fn cells(pod: &Value) -> Vec<Cell> {
    let (spec, status) = (pod.sub("spec"), pod.sub("status"));
    let sidecars = spec.items("initContainers").iter().filter(|c| is_sidecar(c)).count();
    let total = spec.items("containers").len() + sidecars;
    let summary = summarize(pod);
    let or_none = |text: &str| if text.is_empty() { fixed("<none>") } else { fixed(text) };
    let ip = status.items("podIPs").first().map_or(status.text("podIP"), |ip| ip.text("ip"));
    vec![
        fixed(json_fields::name(pod)),
        fixed(format!("{}/{total}", summary.ready)),
        fixed(summary.reason),
        summary.restarts.shown(),
        age(pod),
        or_none(ip),
        or_none(spec.text("nodeName")),
        or_none(status.text("nominatedNodeName")),
        or_none(&gates(pod)),
    ]
}

fn is_sidecar(container: &Value) -> bool {
    container.text("restartPolicy") == "Always"
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod.sub("status").items("conditions").iter().find(|c| c.text("type") == kind)
}

fn is_true(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|c| c.text("status") == "True")
}

fn gates(pod: &Value) -> String {
    let gates = pod.sub("spec").items("readinessGates");
    if gates.is_empty() {
        return String::new();
    }
    let passed = gates.iter().filter(|g| is_true(pod, g.text("conditionType"))).count();
    format!("{passed}/{}", gates.len())
}

fn summarize(pod: &Value) -> Summary {
    let status = pod.sub("status");
    let phase = status.text("phase");
    let mut reason = match status.text("reason") {
        "" => phase,
        reason => reason,
    }
    .to_owned();
    let gated = |c: &Value| c.text("type") == "PodScheduled" && c.text("reason") == "SchedulingGated";
    if status.items("conditions").iter().any(gated) {
        reason = "SchedulingGated".to_owned();
    }
    let mut summary = Summary { ready: 0, reason, restarts: Restarts::default() };
    let (initializing, sidecar_restarts) = init(pod, &mut summary);
    if !initializing || is_true(pod, "Initialized") {
        summary.restarts = sidecar_restarts;
        regular(pod, &mut summary);
    }
    if pod.sub("metadata").has("deletionTimestamp") {
        if status.text("reason") == "NodeLost" {
            summary.reason = "Unknown".to_owned();
        } else if !matches!(phase, "Failed" | "Succeeded") {
            summary.reason = "Terminating".to_owned();
        }
    }
    summary
}

/// Evaluates init containers up to the first unfinished one; returns whether there is one, and the restarts
/// of sidecars.
fn init(pod: &Value, summary: &mut Summary) -> (bool, Restarts) {
    let containers = pod.sub("spec").items("initContainers");
    let mut sidecars = Restarts::default();
    for (i, status) in pod.sub("status").items("initContainerStatuses").iter().enumerate() {
        summary.restarts.add(status);
        let sidecar = containers.iter().any(|c| c.text("name") == status.text("name") && is_sidecar(c));
        if sidecar {
            sidecars.add(status);
        }
        let state = status.sub("state");
        let terminated = state.at("terminated");
        if terminated.is_some_and(|t| t.int("exitCode") == 0) {
            continue;
        }
        if sidecar && status.flag("started") {
            summary.ready += usize::from(status.flag("ready"));
            continue;
        }
        let waiting = state.sub("waiting").text("reason");
        summary.reason = match terminated {
            Some(terminated) => format!("Init:{}", end(terminated)),
            None if !matches!(waiting, "" | "PodInitializing") => format!("Init:{waiting}"),
            None => format!("Init:{i}/{}", containers.len()),
        };
        return (true, sidecars);
    }
    (false, sidecars)
}

/// Returns the reason a container ended.
fn end(terminated: &Value) -> String {
    match (terminated.text("reason"), terminated.int("signal")) {
        ("", 0) => format!("ExitCode:{}", terminated.int("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn regular(pod: &Value, summary: &mut Summary) {
    let (mut running, mut error) = (false, String::new());
    for status in pod.sub("status").items("containerStatuses").iter().rev() {
        summary.restarts.add(status);
        let state = status.sub("state");
        let waiting = state.sub("waiting").text("reason");
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if let Some(terminated) = state.at("terminated") {
            summary.reason = end(terminated);
            if terminated.int("exitCode") != 0 {
                error.clone_from(&summary.reason);
            }
        } else if status.flag("ready") && state.has("running") {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" {
        if running && is_true(pod, "Ready") {
            summary.reason = "Running".to_owned();
        } else if !error.is_empty() {
            summary.reason = error;
        } else if running {
            summary.reason = "NotReady".to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(pod: &Value) -> [String; 3] {
        let now = "2026-01-01T00:10:00Z".parse().expect("a time");
        let row = cells(pod);
        [&row[1], &row[2], &row[3]].map(|c| c.at(now).as_str().unwrap_or_default().to_owned())
    }

    fn row(ready: &str, status: &str, restarts: &str) -> [String; 3] {
        [ready, status, restarts].map(str::to_owned)
    }

    #[test]
    fn a_new_pod_is_pending() {
        let pod = json!({"spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Pending"}});
        assert_eq!(shown(&pod), row("0/1", "Pending", "0"));
    }

    #[test]
    fn a_crashing_container_says_when_it_last_ended() {
        let pod = json!({"spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Running",
            "containerStatuses": [{"name": "c", "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"finishedAt": "2026-01-01T00:08:00Z"}}}]}});
        assert_eq!(shown(&pod), row("0/1", "CrashLoopBackOff", "3 (2m ago)"));
    }

    #[test]
    fn init_containers_are_counted_until_all_are_done() {
        let spec = json!({"containers": [{"name": "c"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
        let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
        let waits = json!({"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}});
        let failed = json!({"name": "j", "state": {"terminated": {"exitCode": 2}}});
        let pod = |last: &Value| json!({"spec": spec, "status": {"phase": "Pending", "initContainerStatuses": [done, last]}});
        assert_eq!(shown(&pod(&waits)), row("0/1", "Init:1/2", "0"));
        assert_eq!(shown(&pod(&failed)), row("0/1", "Init:ExitCode:2", "0"));
    }

    #[test]
    fn a_started_sidecar_counts_as_a_container() {
        let pod = json!({
            "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]},
            "status": {"phase": "Running",
                "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "state": {"running": {}}}],
                "containerStatuses": [{"name": "c", "ready": true, "state": {"running": {}}}]}});
        assert_eq!(shown(&pod), row("2/2", "Running", "0"));
    }

    #[test]
    fn a_pod_that_is_deleted_terminates_unless_it_ended() {
        let pod = |phase: &str| {
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:09:00Z"},
            "spec": {"containers": [{"name": "c"}]}, "status": {"phase": phase}})
        };
        assert_eq!(shown(&pod("Running"))[1], "Terminating");
        assert_eq!(shown(&pod("Failed"))[1], "Failed");
    }

    #[test]
    fn one_failed_container_outweighs_completed_ones() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "status": {"phase": "Failed",
            "containerStatuses": [
                {"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
                {"name": "b", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}});
        assert_eq!(shown(&pod), row("0/2", "Error", "0"));
    }
}
