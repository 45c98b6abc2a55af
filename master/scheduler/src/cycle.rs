//! One scheduling decision: finds the nodes that a pod fits and the best of them, or why there is none.
//! Pure over a locked snapshot; called by `lib.rs` for one pod at a time.

use std::collections::BTreeMap;

use crate::plugins::{Cycle, FILTERS, NodeFilter, Rejection, SCORES};
use crate::snapshot::NodeInfo;

/// Number of nodes up to which a cluster is always searched completely.
const ALL_NODES: usize = 100;

/// Why no node is suitable for a pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct NoSuitableNode {
    /// Number of nodes in the cluster.
    pub nodes: usize,
    /// Number of nodes that gave each reason.
    pub reasons: BTreeMap<String, usize>,
    /// Number of nodes where removing pods could help.
    pub resolvable: usize,
    /// Whether the pod's preemption policy allows removing others.
    pub may_preempt: bool,
}

impl NoSuitableNode {
    /// Renders Kubernetes' message for the PodScheduled condition and the FailedScheduling event.
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let counted = |reasons: &BTreeMap<String, usize>| {
            let mut parts: Vec<_> =
                reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            parts.sort();
            parts.join(", ")
        };
        let head = format!("0/{} nodes are available", self.nodes);
        let preemption = if self.may_preempt {
            let mut reasons = BTreeMap::new();
            if self.resolvable > 0 {
                reasons.insert("No preemption victims found for incoming pod".to_owned(), self.resolvable);
            }
            if self.nodes > self.resolvable {
                let reason = "Preemption is not helpful for scheduling".to_owned();
                reasons.insert(reason, self.nodes - self.resolvable);
            }
            format!("{head}: {}.", counted(&reasons))
        } else {
            "not eligible due to preemptionPolicy=Never.".to_owned()
        };
        format!("{head}: {}. preemption: {preemption}", counted(&self.reasons))
    }
}

/// Returns the name of the best node for the pod. `turn` grows with every call: it decides where the search
/// begins in large clusters and which of several equal nodes is chosen.
pub(crate) fn schedule(cycle: &Cycle<'_>, turn: usize) -> Result<String, NoSuitableNode> {
    let nodes: Vec<&NodeInfo> = cycle.snapshot.nodes().collect();
    let filters: Vec<NodeFilter<'_>> = FILTERS.iter().filter_map(|filter| filter.prepare(cycle)).collect();
    let policy = cycle.pod.pod.spec.as_ref().and_then(|spec| spec.preemption_policy.as_deref());
    let mut unfit = NoSuitableNode {
        nodes: nodes.len(),
        may_preempt: policy != Some("Never"),
        ..NoSuitableNode::default()
    };
    let wanted = feasible_wanted(nodes.len());
    let mut feasible = Vec::new();
    for offset in 0..nodes.len() {
        let info = nodes[(turn + offset) % nodes.len()];
        match filters.iter().find_map(|filter| filter(info)) {
            None => feasible.push(info),
            Some(rejection) => unfit.count(rejection),
        }
        if feasible.len() >= wanted {
            break;
        }
    }
    match feasible.as_slice() {
        [] => Err(unfit),
        [only] => Ok(only.name.clone()),
        several => Ok(best(cycle, several)),
    }
}

impl NoSuitableNode {
    fn count(&mut self, rejection: Rejection) {
        for reason in rejection.reasons {
            *self.reasons.entry(reason).or_default() += 1;
        }
        self.resolvable += usize::from(!rejection.unresolvable);
    }
}

/// Returns how many suitable nodes are enough to choose among: all of a small cluster, a falling share of a
/// large one.
fn feasible_wanted(nodes: usize) -> usize {
    if nodes <= ALL_NODES {
        return nodes.max(1);
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(ALL_NODES)
}

/// Returns the node with the highest score; of equal ones the first in the order of the search, which
/// starts elsewhere each time.
fn best(cycle: &Cycle<'_>, nodes: &[&NodeInfo]) -> String {
    let mut totals = vec![0_i64; nodes.len()];
    for plugin in SCORES {
        let Some(score) = plugin.prepare(cycle, nodes) else { continue };
        let mut scores: Vec<i64> = nodes.iter().map(|info| score(info)).collect();
        plugin.normalize(&mut scores);
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += plugin.weight() * score;
        }
    }
    let mut winner = 0;
    for (position, total) in totals.iter().enumerate() {
        if *total > totals[winner] {
            winner = position;
        }
    }
    nodes[winner].name.clone()
}
