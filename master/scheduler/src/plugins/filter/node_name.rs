//! Enforces NodeName: a pod that names its node fits no other.

use crate::plugins::{Cycle, Filter, NodeFilter, Rejection};

pub(crate) struct NodeName;

impl Filter for NodeName {
    fn prepare<'a>(&self, cycle: &'a Cycle<'_>) -> Option<NodeFilter<'a>> {
        let name = cycle.pod.pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())?;
        Some(Box::new(move |info| {
            let reason = "node(s) didn't match the requested node name";
            (info.name != name).then(|| Rejection::unresolvable(reason))
        }))
    }
}
