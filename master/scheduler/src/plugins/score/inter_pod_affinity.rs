//! Scores InterPodAffinity: sums the weights of the pod's preferred terms for each matching pod in a node's
//! domains.

use crate::plugins::terms::{Domains, preferred};
use crate::plugins::{Cycle, MAX_SCORE, NodeScore, Score};
use crate::snapshot::NodeInfo;

pub(crate) struct InterPodAffinity;

impl Score for InterPodAffinity {
    fn weight(&self) -> i64 {
        2
    }

    fn prepare<'a>(&self, cycle: &'a Cycle<'_>, _nodes: &[&NodeInfo]) -> Option<NodeScore<'a>> {
        let terms = preferred(cycle.pod);
        if terms.is_empty() {
            return None;
        }
        let mut weights = Domains::new();
        for info in cycle.snapshot.nodes() {
            for (term, weight) in &terms {
                let Some(value) = info.labels.get(&term.topology_key) else { continue };
                let meant = info.pods.values().filter(|pod| term.selects(pod, cycle.snapshot)).count();
                let domain = (term.topology_key.clone(), value.clone());
                *weights.entry(domain).or_default() += weight * i64::try_from(meant).unwrap_or(0);
            }
        }
        Some(Box::new(move |info| {
            let own = weights.iter().filter(|((key, value), _)| info.labels.get(key) == Some(value));
            own.map(|(_, weight)| *weight).sum()
        }))
    }

    fn normalize(&self, scores: &mut [i64]) {
        let max = scores.iter().copied().max().unwrap_or(0);
        let min = scores.iter().copied().min().unwrap_or(0);
        for score in scores.iter_mut() {
            *score = if max > min { MAX_SCORE * (*score - min) / (max - min) } else { 0 };
        }
    }
}
