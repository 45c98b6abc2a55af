//! Limits mass eviction: decides how fast nodes may lose their pods, zone by zone, as
//! kube-controller-manager's node lifecycle controller does with its default flags. Pure;
//! `node_lifecycle.rs` reports every node to it and asks it before it taints a node NoExecute.
//!
//! | state of a zone | what it means | nodes that may lose their pods |
//! | --- | --- | --- |
//! | normal | at most two nodes lost, or less than 55 % of the zone | [`BURST`] at once, then one in 10 s |
//! | partly disrupted | more than that, but not all | none in a zone of up to 50 nodes, else one in 100 s |
//! | fully disrupted | all nodes of the zone lost | as in a normal zone |
//! | all zones fully disrupted | the fault is at the master | none; NoExecute taints are taken off |
//!
//! Ephor lets two nodes at once lose their pods in a normal zone where Kubernetes lets one: the loss of a
//! node is noticed within seconds here, so two nodes that fail together are the commonest case, and never a
//! disruption.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use tokio::time::Instant;

/// `--unhealthy-zone-threshold`: share of lost nodes, in percent, at which a zone becomes partly disrupted.
const UNHEALTHY_PERCENT: usize = 55;
/// A zone with at most this many lost nodes is never partly disrupted.
const LOST_ALWAYS_NORMAL: usize = 2;
/// `--node-eviction-rate`: nodes per second that may lose their pods in a normal zone.
const RATE: f64 = 0.1;
/// `--secondary-node-eviction-rate`: nodes per second that may lose their pods in a large, partly disrupted
/// zone.
const SECONDARY_RATE: f64 = 0.01;
/// `--large-cluster-size-threshold`: zones with at most this many nodes evict no pods while partly disrupted.
const LARGE_ZONE: usize = 50;
/// Maximum number of nodes that may lose their pods at once after a quiet time.
const BURST: f64 = 2.0;
/// Maximum number of nodes that may lose their pods at once in a partly disrupted zone.
const SECONDARY_BURST: f64 = 1.0;
/// Time a node must be lost before it may lose its pods: when many are lost together, the first must not be
/// judged while the others are still counted as healthy.
const SETTLE: Duration = Duration::from_millis(300);
/// Time without evictions after the first node comes back to a cluster that was lost as a whole: the other
/// nodes need one detection window to be heard again.
const AFTER_FULL_DISRUPTION: Duration = Duration::from_secs(5);

/// Label of nodes that do not count as lost nodes of their zone; they may lose their pods all the same.
const EXCLUDE: &str = "node.kubernetes.io/exclude-disruption";

/// Decision about the NoExecute taint of a lost node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// Taint the node NoExecute, so that its pods are evicted.
    Evict,
    /// Add no taint; ask again after this long, or, when `None`, once [`Zones::set`] says that a state has
    /// changed.
    Wait(Option<Duration>),
    /// Take the NoExecute taint off, since every node seems lost.
    Withdraw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Normal,
    Partial,
    Full,
}

struct Member {
    zone: String,
    /// Whether the node is left out of the counts, because of its label.
    excluded: bool,
    lost_since: Option<Instant>,
}

/// A zone: its counts of nodes and how many of them may lose their pods now.
struct Zone {
    ready: usize,
    lost: usize,
    /// Number of nodes that may lose their pods at once; grows with time.
    tokens: f64,
    refilled: Instant,
}

/// All zones of the cluster.
#[derive(Default)]
pub(super) struct Zones {
    nodes: BTreeMap<String, Member>,
    zones: BTreeMap<String, Zone>,
    /// Lost nodes whose pods may be evicted already: they need no second token.
    granted: BTreeSet<String>,
    /// Time until which no node loses pods after a full disruption of all zones; `None` when there was none.
    held_until: Option<Instant>,
}

impl Zone {
    fn new(now: Instant) -> Self {
        Self { ready: 0, lost: 0, tokens: BURST, refilled: now }
    }

    fn state(&self) -> State {
        match (self.ready, self.lost) {
            (0, 1..) => State::Full,
            (ready, lost)
                if lost > LOST_ALWAYS_NORMAL && lost * 100 >= (ready + lost) * UNHEALTHY_PERCENT =>
            {
                State::Partial
            }
            _ => State::Normal,
        }
    }

    /// Returns how many nodes may lose their pods per second, and how many at once.
    fn rate(&self) -> (f64, f64) {
        match self.state() {
            State::Normal | State::Full => (RATE, BURST),
            State::Partial if self.ready + self.lost > LARGE_ZONE => (SECONDARY_RATE, SECONDARY_BURST),
            State::Partial => (0.0, SECONDARY_BURST),
        }
    }

    /// Adds the tokens earned up to `now`. Must be called before the rate changes.
    fn refill(&mut self, now: Instant) {
        let (rate, burst) = self.rate();
        let passed = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.tokens = (self.tokens + passed * rate).min(burst);
        self.refilled = now;
    }
}

impl Zones {
    /// Records the present state of a node. True when a zone or the whole cluster has changed its state:
    /// then every lost node has to ask again.
    pub fn set(&mut self, node: &Node, ready: bool, now: Instant) -> bool {
        let name = node.metadata.name.clone().unwrap_or_default();
        let before = self.states();
        let lost_since = self.nodes.get(&name).and_then(|known| known.lost_since);
        self.take_out(&name, now);
        if ready {
            self.granted.remove(&name);
        }
        let labels = node.metadata.labels.as_ref();
        let member = Member {
            zone: zone_of(node),
            excluded: labels.is_some_and(|labels| labels.contains_key(EXCLUDE)),
            lost_since: (!ready).then(|| lost_since.unwrap_or(now)),
        };
        let zone = self.zones.entry(member.zone.clone()).or_insert_with(|| Zone::new(now));
        zone.refill(now);
        match (member.excluded, ready) {
            (true, _) => {}
            (false, true) => zone.ready += 1,
            (false, false) => zone.lost += 1,
        }
        self.nodes.insert(name, member);
        self.after_change(before, now)
    }

    /// Forgets a deleted node; returns the same as [`Zones::set`].
    pub fn remove(&mut self, node: &str, now: Instant) -> bool {
        let before = self.states();
        self.take_out(node, now);
        self.granted.remove(node);
        self.after_change(before, now)
    }

    /// Returns what may be done about a lost node's taint. `tainted`: it has NoExecute already, maybe from
    /// an earlier leader.
    pub fn ask(&mut self, node: &str, tainted: bool, now: Instant) -> Permission {
        if self.all_lost() {
            self.granted.remove(node);
            return Permission::Withdraw;
        }
        if tainted {
            self.granted.insert(node.to_owned());
        }
        if self.granted.contains(node) {
            return Permission::Evict;
        }
        let Some(member) = self.nodes.get(node) else { return Permission::Wait(None) };
        let settled = member.lost_since.map(|since| since + SETTLE);
        if let Some(until) = settled.max(self.held_until).filter(|until| *until > now) {
            return Permission::Wait(Some(until - now));
        }
        let Some(zone) = self.zones.get_mut(&member.zone) else { return Permission::Wait(None) };
        zone.refill(now);
        if zone.rate().0 == 0.0 {
            return Permission::Wait(None);
        }
        if zone.tokens >= 1.0 {
            zone.tokens -= 1.0;
            self.granted.insert(node.to_owned());
            return Permission::Evict;
        }
        let seconds = (1.0 - zone.tokens) / zone.rate().0;
        // A millisecond more, so that rounding never makes the caller ask before the token is there.
        Permission::Wait(Some(Duration::from_secs_f64(seconds) + Duration::from_millis(1)))
    }

    /// Whether every zone that has nodes has lost all of them.
    fn all_lost(&self) -> bool {
        let mut states =
            self.zones.values().filter(|zone| zone.ready + zone.lost > 0).map(Zone::state).peekable();
        states.peek().is_some() && states.all(|state| state == State::Full)
    }

    fn take_out(&mut self, node: &str, now: Instant) {
        let Some(member) = self.nodes.remove(node) else { return };
        let Some(zone) = self.zones.get_mut(&member.zone) else { return };
        zone.refill(now);
        match (member.excluded, member.lost_since) {
            (true, _) => {}
            (false, None) => zone.ready -= 1,
            (false, Some(_)) => zone.lost -= 1,
        }
    }

    /// Returns whether all nodes are lost, and the states of all zones.
    fn states(&self) -> (bool, Vec<State>) {
        (self.all_lost(), self.zones.values().map(Zone::state).collect())
    }

    fn after_change(&mut self, before: (bool, Vec<State>), now: Instant) -> bool {
        let after = self.states();
        if before.0 && !after.0 {
            self.held_until = Some(now + AFTER_FULL_DISRUPTION);
            tracing::info!("not all nodes are lost any more; evictions may begin again soon");
        } else if !before.0 && after.0 {
            self.granted.clear();
            tracing::warn!("all nodes are lost; no node loses its pods");
        }
        before != after
    }
}

/// Returns region and zone of a node, from its labels.
fn zone_of(node: &Node) -> String {
    let label = |names: [&str; 2]| {
        let labels = node.metadata.labels.as_ref();
        labels.and_then(|labels| names.iter().find_map(|name| labels.get(*name))).map_or("", String::as_str)
    };
    let region = label(["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"]);
    let zone = label(["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]);
    format!("{region}\0{zone}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct World {
        zones: Zones,
        now: Instant,
    }

    fn name(zone: &str, number: usize) -> String {
        format!("{zone}-{number}")
    }

    impl World {
        /// Creates zones with the given names and numbers of nodes, all ready.
        fn new(sizes: &[(&str, usize)]) -> Self {
            let mut world = Self { zones: Zones::default(), now: Instant::now() };
            for (zone, size) in sizes {
                world.turn(zone, 0..*size, true);
            }
            world
        }

        fn turn(&mut self, zone: &str, numbers: std::ops::Range<usize>, ready: bool) {
            for number in numbers {
                let node = json!({"metadata": {"name": name(zone, number),
                    "labels": {"topology.kubernetes.io/zone": zone}}});
                self.zones.set(&serde_json::from_value(node).unwrap(), ready, self.now);
            }
        }

        fn later(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }

        fn ask(&mut self, zone: &str, number: usize) -> Permission {
            self.zones.ask(&name(zone, number), false, self.now)
        }

        /// Counts those of these lost nodes that may lose their pods now.
        fn evicted(&mut self, zone: &str, numbers: std::ops::Range<usize>) -> usize {
            numbers.filter(|number| self.ask(zone, *number) == Permission::Evict).count()
        }
    }

    #[test]
    fn one_lost_worker_of_two_loses_its_pods_at_once_but_not_both() {
        let mut world = World::new(&[("a", 2)]);
        world.turn("a", 0..1, false);
        assert_eq!(world.ask("a", 0), Permission::Wait(Some(SETTLE)));
        world.later(1);
        assert_eq!(world.ask("a", 0), Permission::Evict);
        world.turn("a", 1..2, false);
        world.later(1);
        assert_eq!(world.ask("a", 0), Permission::Withdraw);
        assert_eq!(world.ask("a", 1), Permission::Withdraw);
    }

    #[test]
    fn two_workers_that_die_together_lose_their_pods_at_once_and_a_third_later() {
        let mut world = World::new(&[("a", 10)]);
        world.turn("a", 0..3, false);
        world.later(1);
        assert_eq!(world.evicted("a", 0..3), 2);
        let Permission::Wait(Some(wait)) = world.ask("a", 2) else { panic!("no time") };
        assert!((9..=10).contains(&wait.as_secs()), "{wait:?}");
        world.now += wait;
        assert_eq!(world.evicted("a", 0..3), 3);
    }

    #[test]
    fn a_small_zone_that_loses_most_nodes_evicts_nobody_and_a_large_one_slowly() {
        let mut world = World::new(&[("small", 10), ("large", 1000)]);
        world.turn("small", 0..6, false);
        world.turn("large", 0..990, false);
        world.later(1);
        assert_eq!(world.evicted("small", 0..6), 0);
        assert_eq!(world.evicted("large", 0..990), 1);
        world.later(99);
        assert_eq!(world.evicted("large", 0..990), 1);
        world.later(2);
        assert_eq!(world.evicted("large", 0..990), 2);
        // As soon as enough nodes are back, evictions go on at the usual rate.
        world.turn("small", 0..1, true);
        assert_eq!(world.evicted("small", 1..6), 1);
    }

    #[test]
    fn a_zone_that_is_lost_as_a_whole_is_left_at_the_usual_rate() {
        let mut world = World::new(&[("a", 5), ("b", 5)]);
        world.turn("a", 0..5, false);
        world.later(1);
        // Until the last node was lost, the zone was only partly disrupted.
        assert_eq!(world.evicted("a", 0..5), 1);
        world.later(10);
        assert_eq!(world.evicted("a", 0..5), 2);
    }

    #[test]
    fn after_a_full_disruption_nobody_loses_pods_for_one_window() {
        let mut world = World::new(&[("a", 2), ("b", 1)]);
        world.turn("a", 0..2, false);
        world.turn("b", 0..1, false);
        world.later(1);
        assert_eq!(world.ask("a", 0), Permission::Withdraw);
        world.turn("a", 1..2, true);
        assert_eq!(world.ask("a", 0), Permission::Wait(Some(AFTER_FULL_DISRUPTION)));
        world.later(6);
        assert_eq!(world.ask("a", 0), Permission::Evict);
    }

    #[test]
    fn a_node_that_was_tainted_before_this_leader_needs_no_permission() {
        let mut world = World::new(&[("a", 10)]);
        world.turn("a", 0..6, false);
        assert_eq!(world.zones.ask("a-0", true, world.now), Permission::Evict);
        assert_eq!(world.ask("a", 0), Permission::Evict);
    }

    #[test]
    fn nodes_that_are_gone_or_excluded_do_not_count() {
        let mut world = World::new(&[("a", 4)]);
        let excluded = json!({"metadata": {"name": "a-0", "labels": {"topology.kubernetes.io/zone": "a",
            "node.kubernetes.io/exclude-disruption": ""}}});
        world.zones.set(&serde_json::from_value(excluded).unwrap(), false, world.now);
        world.turn("a", 1..3, false);
        world.later(1);
        assert_eq!(world.evicted("a", 0..3), 2, "only two of three count as lost");
        let mut world = World::new(&[("a", 4)]);
        world.turn("a", 0..3, false);
        assert!(world.zones.remove("a-0", world.now), "the zone is normal again");
    }
}
