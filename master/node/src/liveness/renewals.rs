//! Signs of life of nodes whose agents send no beats, such as a stock kubelet or kwok: the heartbeat time of
//! the Ready condition and the renewal of the node's Lease, both written through the API. As in Kubernetes'
//! node-lifecycle controller, a change counts from when this master saw it, since the clocks of nodes differ.
//! Called by `liveness.rs`.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use proto_api::node_labels::SENDS_BEATS;

/// How long a node may renew nothing: the default of `--node-monitor-grace-period` of Kubernetes, as agents
/// renew their Leases every ten seconds.
const GRACE: Duration = Duration::from_secs(50);
/// How long a node may take until it first reports its Ready condition: the default of
/// `--node-startup-grace-period`.
const STARTUP_GRACE: Duration = Duration::from_secs(60);

/// What the agent of a node renewed last.
#[derive(Debug)]
pub(super) struct Renewal {
    /// When this master saw it, on the monotonic clock.
    pub seen: Duration,
    /// Heartbeat time of the Ready condition.
    heartbeat: Option<Timestamp>,
    /// Renewal time of the Lease.
    renewed: Option<Timestamp>,
}

impl Renewal {
    /// Puts the present heartbeat and renewal times into `last`, with the time `now` if they are new.
    pub fn note(last: &mut Option<Self>, node: &Node, lease: Option<&Lease>, now: Duration) {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        let ready = conditions.and_then(|conditions| conditions.iter().find(|c| c.type_ == "Ready"));
        let heartbeat = ready.and_then(|ready| ready.last_heartbeat_time.as_ref()).map(|time| time.0);
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref()).map(|time| time.0);
        let same = |last: &Self| last.heartbeat == heartbeat && last.renewed == renewed;
        if !last.as_ref().is_some_and(same) {
            *last = Some(Self { seen: now, heartbeat, renewed });
        }
    }
}

/// Returns whether the node's agent says that it sends beats.
pub(super) fn sends_beats(node: &Node) -> bool {
    let annotations = node.metadata.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(SENDS_BEATS)).is_some_and(|value| value == "true")
}

/// Returns how long a node without beats, whose Ready condition has this status, may renew nothing.
pub(super) fn grace(ready_status: &str) -> Duration {
    if ready_status == "Missing" { STARTUP_GRACE } else { GRACE }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::tests::{Fixed, at};
    use super::super::{Liveness, Verdict};
    use super::*;

    /// A master that has known a node without beats since second 100, and what the node last wrote.
    struct World {
        clock: Arc<Fixed>,
        liveness: Arc<Liveness>,
        conditions: serde_json::Value,
        lease: Option<Arc<Lease>>,
    }

    impl World {
        fn new() -> Self {
            let (clock, liveness) = at(100);
            let mut world = Self { clock, liveness, conditions: json!([]), lease: None };
            world.report("True", 0);
            assert_eq!(world.judge(100), None);
            world
        }

        /// Writes the Ready condition with the heartbeat time `minute`.
        fn report(&mut self, status: &str, minute: u32) {
            let time = format!("2026-01-01T00:{minute:02}:00Z");
            self.conditions = json!([{"type": "Ready", "status": status, "lastHeartbeatTime": time}]);
        }

        fn renew(&mut self, minute: u32) {
            let lease = json!({"spec": {"renewTime": format!("2026-01-01T00:{minute:02}:00.000000Z")}});
            self.lease = Some(Arc::new(serde_json::from_value(lease).unwrap()));
        }

        /// Returns the verdict at this second.
        fn judge(&self, second: u64) -> Option<Verdict> {
            self.clock.set(second);
            let node = json!({"metadata": {"name": "k1"}, "status": {"conditions": self.conditions}});
            let node: Node = serde_json::from_value(node).unwrap();
            let lease = |name: &str| self.lease.clone().filter(|_| name == "k1");
            let beats_within = Duration::from_secs(4);
            self.liveness.scan([node].iter(), lease, beats_within).verdicts.pop().map(|(_, verdict)| verdict)
        }
    }

    #[test]
    fn a_node_that_renews_nothing_becomes_unknown_after_fifty_seconds() {
        let world = World::new();
        assert_eq!(world.judge(150), None);
        assert_eq!(world.judge(151), Some(Verdict::Unknown));
    }

    #[test]
    fn renewing_the_lease_or_the_status_keeps_a_node_alive() {
        let mut world = World::new();
        world.renew(1);
        assert_eq!(world.judge(140), None);
        assert_eq!(world.judge(190), None);
        world.report("True", 2);
        assert_eq!(world.judge(190), None);
        assert_eq!(world.judge(240), None);
        assert_eq!(world.judge(241), Some(Verdict::Unknown));
    }

    #[test]
    fn a_node_without_beats_says_itself_that_it_is_ready_again() {
        let mut world = World::new();
        world.report("Unknown", 0);
        world.renew(1);
        assert_eq!(world.judge(110), None, "its agent writes the condition");
    }

    #[test]
    fn a_node_that_never_reports_has_sixty_seconds() {
        let mut world = World::new();
        world.conditions = json!([]);
        assert_eq!(world.judge(110), None);
        assert_eq!(world.judge(170), None);
        assert_eq!(world.judge(171), Some(Verdict::NeverReported));
    }

    #[test]
    fn a_node_that_beats_is_judged_by_its_beats_alone() {
        let mut world = World::new();
        world.liveness.beat("k1", true, "");
        world.renew(1);
        assert_eq!(world.judge(104), None);
        assert_eq!(world.judge(105), Some(Verdict::Unknown));
    }
}
