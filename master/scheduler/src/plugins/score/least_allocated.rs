//! NodeResourcesFit, strategy LeastAllocated: nodes with more CPU and memory left over are better.

use crate::plugins::{Cycle, MAX_SCORE, NodeScore, Score};
use crate::snapshot::NodeInfo;

pub(crate) struct LeastAllocated;

impl Score for LeastAllocated {
    fn weight(&self) -> i64 {
        1
    }

    fn prepare<'a>(&self, cycle: &'a Cycle<'_>, _nodes: &[&NodeInfo]) -> Option<NodeScore<'a>> {
        let own = &cycle.pod.scoring_request;
        Some(Box::new(move |info| {
            let (used, has) = (&info.scoring_requested, &info.allocatable);
            let cpu = left(used.cpu_milli + own.cpu_milli, has.cpu_milli);
            let memory = left(used.memory_bytes + own.memory_bytes, has.memory_bytes);
            let shares: Vec<i64> = [cpu, memory].into_iter().flatten().collect();
            let count = i64::try_from(shares.len()).unwrap_or(1).max(1);
            shares.iter().sum::<i64>() / count
        }))
    }
}

/// Share that is left, out of [`MAX_SCORE`]; none of a resource the node does not have.
fn left(used: i64, has: i64) -> Option<i64> {
    (has > 0).then(|| if used > has { 0 } else { (has - used) * MAX_SCORE / has })
}
