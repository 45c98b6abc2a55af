//! Scores TaintToleration: nodes with fewer PreferNoSchedule taints that the pod does not tolerate are
//! better.

use master_client::tolerates;

use crate::plugins::taints::{taints, tolerations};
use crate::plugins::{Cycle, NodeScore, Score, scale};
use crate::snapshot::NodeInfo;

pub(crate) struct TaintToleration;

impl Score for TaintToleration {
    fn weight(&self) -> i64 {
        3
    }

    fn prepare<'a>(&self, cycle: &'a Cycle<'_>, nodes: &[&NodeInfo]) -> Option<NodeScore<'a>> {
        let discouraging =
            |info: &&NodeInfo| taints(info).iter().any(|taint| taint.effect == "PreferNoSchedule");
        if !nodes.iter().any(discouraging) {
            return None;
        }
        let tolerations = tolerations(cycle.pod);
        Some(Box::new(move |info| {
            let untolerated = taints(info)
                .iter()
                .filter(|taint| taint.effect == "PreferNoSchedule")
                .filter(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)));
            i64::try_from(untolerated.count()).unwrap_or(i64::MAX)
        }))
    }

    fn normalize(&self, scores: &mut [i64]) {
        scale(scores, true);
    }
}
