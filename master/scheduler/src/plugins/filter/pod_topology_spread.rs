//! Enforces PodTopologySpread's hard constraints: no domain may have more than `maxSkew` matching pods more
//! than the domain with the fewest.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use kube::core::{Selector, SelectorExt};
use master_client::tolerates;

use crate::plugins::node_selector::accepts;
use crate::plugins::taints::{taints, tolerations};
use crate::plugins::terms::selector;
use crate::plugins::{Cycle, Filter, NodeFilter, Rejection};
use crate::snapshot::{NodeInfo, PodInfo};

const REASON: &str = "node(s) didn't match pod topology spread constraints";

pub(crate) struct PodTopologySpread;

struct HardConstraint {
    key: String,
    max_skew: i64,
    /// 1 when the pod itself matches and adds to the count of its domain, else 0.
    counts_itself: i64,
    /// Number of matching pods by domain.
    domains: BTreeMap<String, i64>,
    minimum: i64,
}

impl Filter for PodTopologySpread {
    fn prepare<'a>(&self, cycle: &'a Cycle<'_>) -> Option<NodeFilter<'a>> {
        let constraints = cycle.pod.pod.spec.as_ref()?.topology_spread_constraints.as_ref()?;
        let hard: Vec<_> = constraints
            .iter()
            .filter(|constraint| constraint.when_unsatisfiable == "DoNotSchedule")
            .collect();
        if hard.is_empty() {
            return None;
        }
        let counted: Vec<_> = hard.iter().map(|constraint| count(constraint, &hard, cycle)).collect();
        Some(Box::new(move |info| counted.iter().find_map(|constraint| judge(constraint, info))))
    }
}

fn judge(constraint: &HardConstraint, info: &NodeInfo) -> Option<Rejection> {
    let Some(domain) = info.labels.get(&constraint.key) else {
        return Some(Rejection::unresolvable(format!("{REASON} (missing required label)")));
    };
    let count = constraint.domains.get(domain).copied().unwrap_or(0);
    let skew = count + constraint.counts_itself - constraint.minimum;
    (skew > constraint.max_skew).then(|| Rejection::one(REASON))
}

fn count(
    constraint: &TopologySpreadConstraint,
    all: &[&TopologySpreadConstraint],
    cycle: &Cycle<'_>,
) -> HardConstraint {
    let selector = constraint_selector(constraint, cycle.pod);
    let mut domains: BTreeMap<String, i64> = BTreeMap::new();
    let complete =
        |info: &&NodeInfo| all.iter().all(|constraint| info.labels.contains_key(&constraint.topology_key));
    for info in cycle.snapshot.nodes().filter(complete).filter(|info| counts(constraint, cycle.pod, info)) {
        let Some(domain) = info.labels.get(&constraint.topology_key) else { continue };
        *domains.entry(domain.clone()).or_default() +=
            matching(selector.as_ref(), cycle.pod.namespace(), info);
    }
    let wanted = i64::from(constraint.min_domains.unwrap_or(1));
    let enough = i64::try_from(domains.len()).unwrap_or(i64::MAX) >= wanted;
    let minimum = if enough { domains.values().copied().min().unwrap_or(0) } else { 0 };
    let itself = selector.is_some_and(|selector| selector.matches(cycle.pod.labels()));
    HardConstraint {
        key: constraint.topology_key.clone(),
        max_skew: i64::from(constraint.max_skew),
        counts_itself: i64::from(itself),
        domains,
        minimum,
    }
}

/// Returns the constraint's selector, narrowed to the pod's own values of `matchLabelKeys`.
pub(crate) fn constraint_selector(constraint: &TopologySpreadConstraint, pod: &PodInfo) -> Option<Selector> {
    let mut labels = constraint.label_selector.clone()?;
    let own = pod.labels();
    for key in constraint.match_label_keys.iter().flatten() {
        if let Some(value) = own.get(key) {
            labels.match_labels.get_or_insert_default().insert(key.clone(), value.clone());
        }
    }
    selector(Some(&labels))
}

/// Whether the node's pods count, according to the constraint's node inclusion policies.
pub(crate) fn counts(constraint: &TopologySpreadConstraint, pod: &PodInfo, info: &NodeInfo) -> bool {
    let affinity = constraint.node_affinity_policy.as_deref().unwrap_or("Honor") != "Honor";
    let tainted = constraint.node_taints_policy.as_deref() == Some("Honor")
        && taints(info)
            .iter()
            .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
            .any(|taint| !tolerations(pod).iter().any(|toleration| tolerates(toleration, taint)));
    (affinity || accepts(pod, info)) && !tainted
}

/// Counts the node's pods in the namespace that the selector accepts and that are not terminating.
pub(crate) fn matching(selector: Option<&Selector>, namespace: &str, info: &NodeInfo) -> i64 {
    let Some(selector) = selector else { return 0 };
    let counted = info.pods.values().filter(|pod| {
        pod.namespace() == namespace && !pod.is_terminating() && selector.matches(pod.labels())
    });
    i64::try_from(counted.count()).unwrap_or(i64::MAX)
}
