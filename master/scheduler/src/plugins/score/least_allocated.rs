//! Scores NodeResourcesFit with strategy LeastAllocated: nodes with more CPU and memory left are better.

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
            let cpu = free_share(used.cpu_milli.saturating_add(own.cpu_milli), has.cpu_milli);
            let memory = free_share(used.memory_bytes.saturating_add(own.memory_bytes), has.memory_bytes);
            let shares: Vec<i64> = [cpu, memory].into_iter().flatten().collect();
            let count = i64::try_from(shares.len()).unwrap_or(1).max(1);
            shares.iter().sum::<i64>() / count
        }))
    }
}

/// Returns the free share of a resource, out of [`MAX_SCORE`]; `None` when the node does not have the
/// resource.
fn free_share(used: i64, has: i64) -> Option<i64> {
    if has <= 0 {
        return None;
    }
    let free = i128::from(has) - i128::from(used);
    let share = free.max(0) * i128::from(MAX_SCORE) / i128::from(has);
    Some(i64::try_from(share).unwrap_or(MAX_SCORE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_any_amounts_are_scores() {
        assert_eq!(free_share(25, 100), Some(75));
        assert_eq!(free_share(101, 100), Some(0));
        assert_eq!(free_share(1, 0), None);
        assert_eq!(free_share(0, i64::MAX), Some(MAX_SCORE));
        assert_eq!(free_share(i64::MAX, i64::MAX), Some(0));
    }
}
