//! Scores PodTopologySpread's soft constraints: nodes in domains with fewer matching pods are better. A pod
//! without constraints of its own that belongs to a Service or a ReplicaSet is spread over hosts and zones.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, TopologySpreadConstraint};
use kube::core::{Selector, SelectorExt};

use crate::plugins::filter::pod_topology_spread::{constraint_selector, counts, matching};
use crate::plugins::terms::selector;
use crate::plugins::{Cycle, MAX_SCORE, NodeScore, Score};
use crate::snapshot::NodeInfo;

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Factor by which counts are scaled, so that fractions are kept.
const UNIT: f64 = 1000.0;

pub(crate) struct PodTopologySpread;

struct SoftConstraint {
    key: String,
    max_skew: i64,
    selector: Selector,
    namespace: String,
    /// Number of matching pods by domain; not filled for hosts, whose pods are counted when they are scored.
    domains: BTreeMap<String, i64>,
    /// Weight of the constraint's counts; grows with the number of domains.
    weight: f64,
}

impl Score for PodTopologySpread {
    fn weight(&self) -> i64 {
        2
    }

    fn prepare<'a>(&self, cycle: &'a Cycle<'_>, nodes: &[&NodeInfo]) -> Option<NodeScore<'a>> {
        let constraints = constraints(cycle);
        if constraints.is_empty() {
            return None;
        }
        let weighed: Vec<_> = constraints
            .into_iter()
            .map(|(constraint, selector)| weigh(&constraint, selector, cycle, nodes))
            .collect();
        Some(Box::new(move |info| weighed.iter().map(|constraint| rate(constraint, info)).sum()))
    }

    /// Turns counts into scores: the fewest pods give the highest score.
    fn normalize(&self, scores: &mut [i64]) {
        let max = scores.iter().copied().max().unwrap_or(0);
        let min = scores.iter().copied().min().unwrap_or(0);
        for score in scores.iter_mut() {
            *score = if max == 0 { MAX_SCORE } else { MAX_SCORE * (max + min - *score) / max };
        }
    }
}

fn rate(constraint: &SoftConstraint, info: &NodeInfo) -> i64 {
    let Some(domain) = info.labels.get(&constraint.key) else { return 0 };
    let count = if constraint.key == HOSTNAME {
        matching(Some(&constraint.selector), &constraint.namespace, info)
    } else {
        constraint.domains.get(domain).copied().unwrap_or(0)
    };
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "counts of pods are small"
    )]
    let rated = ((count as f64 * constraint.weight + (constraint.max_skew - 1) as f64) * UNIT).round() as i64;
    rated
}

fn weigh(
    constraint: &TopologySpreadConstraint,
    selector: Selector,
    cycle: &Cycle<'_>,
    nodes: &[&NodeInfo],
) -> SoftConstraint {
    let mut domains: BTreeMap<String, i64> = BTreeMap::new();
    for info in nodes {
        if let Some(domain) = info.labels.get(&constraint.topology_key) {
            domains.entry(domain.clone()).or_default();
        }
    }
    let size = domains.len();
    if constraint.topology_key == HOSTNAME {
        domains.clear();
    } else {
        for info in cycle.snapshot.nodes().filter(|info| counts(constraint, cycle.pod, info)) {
            let domain = info.labels.get(&constraint.topology_key);
            if let Some(count) = domain.and_then(|domain| domains.get_mut(domain)) {
                *count += matching(Some(&selector), cycle.pod.namespace(), info);
            }
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "counts of domains are small")]
    let weight = (size as f64 + 2.0).ln();
    SoftConstraint {
        key: constraint.topology_key.clone(),
        max_skew: i64::from(constraint.max_skew),
        selector,
        namespace: cycle.pod.namespace().to_owned(),
        domains,
        weight,
    }
}

/// Returns the pod's own soft constraints or, when it has no constraints at all, the default ones.
fn constraints(cycle: &Cycle<'_>) -> Vec<(TopologySpreadConstraint, Selector)> {
    let own = cycle.pod.pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_ref());
    if let Some(own) = own.filter(|own| !own.is_empty()) {
        let soft = own.iter().filter(|constraint| constraint.when_unsatisfiable == "ScheduleAnyway");
        return soft
            .filter_map(|constraint| Some((constraint.clone(), constraint_selector(constraint, cycle.pod)?)))
            .collect();
    }
    let Some(selector) = group_selector(cycle) else { return Vec::new() };
    let default = |key: &str, max_skew| TopologySpreadConstraint {
        topology_key: key.to_owned(),
        max_skew,
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        ..TopologySpreadConstraint::default()
    };
    vec![(default(HOSTNAME, 3), selector.clone()), (default(ZONE, 5), selector)]
}

/// Combines the selectors of the Services and the ReplicaSet that select the pod; `None` when none does.
fn group_selector(cycle: &Cycle<'_>) -> Option<Selector> {
    let pod: &Pod = &cycle.pod.pod;
    let labels = cycle.pod.labels();
    let mut group = Selector::default();
    let mut found = false;
    for service in cycle.informers.services.cache().in_namespace(cycle.pod.namespace()) {
        let Some(own) = service.spec.as_ref().and_then(|spec| spec.selector.clone()) else { continue };
        let own: Selector = own.into_iter().collect();
        if !own.selects_all() && own.matches(labels) {
            group.extend(own);
            found = true;
        }
    }
    let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    if let Some(owner) = owner.filter(|owner| owner.kind == "ReplicaSet") {
        let set = cycle.informers.replica_sets.cache().find(cycle.pod.namespace(), &owner.name);
        let set = set.filter(|set| set.metadata.uid.as_deref() == Some(&owner.uid));
        let own = set.and_then(|set| selector(set.spec.as_ref().map(|spec| &spec.selector)));
        if let Some(own) = own.filter(|own| !own.selects_all()) {
            group.extend(own);
            found = true;
        }
    }
    found.then_some(group)
}
