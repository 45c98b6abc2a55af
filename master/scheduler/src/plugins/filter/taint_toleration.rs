//! Enforces TaintToleration: the pod must tolerate all NoSchedule and NoExecute taints of the node.

use master_client::tolerates;

use crate::plugins::taints::{taints, tolerations};
use crate::plugins::{Cycle, Filter, NodeFilter, Rejection};

pub(crate) struct TaintToleration;

impl Filter for TaintToleration {
    fn prepare<'a>(&self, cycle: &'a Cycle<'_>) -> Option<NodeFilter<'a>> {
        let tolerations = tolerations(cycle.pod);
        Some(Box::new(move |info| {
            let forbidding = taints(info)
                .iter()
                .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
                .find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))?;
            let value = forbidding.value.as_deref().unwrap_or_default();
            let reason = format!("node(s) had untolerated taint {{{}: {value}}}", forbidding.key);
            Some(Rejection::unresolvable(reason))
        }))
    }
}
