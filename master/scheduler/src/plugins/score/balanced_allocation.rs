//! Scores NodeResourcesBalancedAllocation: nodes where CPU and memory would be used to similar shares are
//! better.

use crate::plugins::{Cycle, MAX_SCORE, NodeScore, Score};
use crate::snapshot::NodeInfo;

pub(crate) struct BalancedAllocation;

impl Score for BalancedAllocation {
    fn weight(&self) -> i64 {
        1
    }

    fn prepare<'a>(&self, cycle: &'a Cycle<'_>, _nodes: &[&NodeInfo]) -> Option<NodeScore<'a>> {
        let own = &cycle.pod.request;
        // A pod without requests changes no balance.
        if own.cpu_milli == 0 && own.memory_bytes == 0 {
            return None;
        }
        Some(Box::new(move |info| {
            let (used, has) = (&info.requested, &info.allocatable);
            let cpu = share(used.cpu_milli.saturating_add(own.cpu_milli), has.cpu_milli);
            let memory = share(used.memory_bytes.saturating_add(own.memory_bytes), has.memory_bytes);
            let deviation = match (cpu, memory) {
                (Some(cpu), Some(memory)) => (cpu - memory).abs() / 2,
                _ => 0,
            };
            MAX_SCORE - deviation * MAX_SCORE / SCALE
        }))
    }
}

/// Denominator of shares: integers instead of fractions, so that every machine decides alike.
const SCALE: i64 = 1_000_000;

fn share(used: i64, has: i64) -> Option<i64> {
    if has <= 0 {
        return None;
    }
    let share = i128::from(used) * i128::from(SCALE) / i128::from(has);
    Some(i64::try_from(share).unwrap_or(SCALE).clamp(0, SCALE))
}
