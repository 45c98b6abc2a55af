//! Scores NodeAffinity: sums the weights of the preferred terms that a node satisfies.

use crate::plugins::node_selector::matches;
use crate::plugins::{Cycle, NodeScore, Score, scale};
use crate::snapshot::NodeInfo;

pub(crate) struct NodeAffinity;

impl Score for NodeAffinity {
    fn weight(&self) -> i64 {
        2
    }

    fn prepare<'a>(&self, cycle: &'a Cycle<'_>, _nodes: &[&NodeInfo]) -> Option<NodeScore<'a>> {
        let affinity = cycle.pod.affinity()?.node_affinity.as_ref()?;
        let terms = affinity.preferred_during_scheduling_ignored_during_execution.as_ref()?;
        Some(Box::new(move |info| {
            let fulfilled = terms.iter().filter(|term| matches(&term.preference, info));
            fulfilled.map(|term| i64::from(term.weight)).sum()
        }))
    }

    fn normalize(&self, scores: &mut [i64]) {
        scale(scores, false);
    }
}
