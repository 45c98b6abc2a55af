//! Enforces NodeAffinity: `nodeSelector` and the required node affinity.

use crate::plugins::node_selector::accepts;
use crate::plugins::{Cycle, Filter, NodeFilter, Rejection};

pub(crate) struct NodeAffinity;

impl Filter for NodeAffinity {
    fn prepare<'a>(&self, cycle: &'a Cycle<'_>) -> Option<NodeFilter<'a>> {
        let pod = cycle.pod;
        Some(Box::new(move |info| {
            let reason = "node(s) didn't match Pod's node affinity/selector";
            (!accepts(pod, info)).then(|| Rejection::unresolvable(reason))
        }))
    }
}
