//! Enforces NodeResourcesFit: the node must have the resources left that the pod requests.

use crate::plugins::{Cycle, Filter, NodeFilter, Rejection};
use crate::resources::Resources;
use crate::snapshot::NodeInfo;

pub(crate) struct NodeResourcesFit;

impl Filter for NodeResourcesFit {
    fn prepare<'a>(&self, cycle: &'a Cycle<'_>) -> Option<NodeFilter<'a>> {
        let request = &cycle.pod.request;
        Some(Box::new(move |info| shortage(request, info)))
    }
}

fn shortage(request: &Resources, info: &NodeInfo) -> Option<Rejection> {
    let mut reasons = Vec::new();
    let mut unresolvable = false;
    let pods = i64::try_from(info.pods.len()).unwrap_or(i64::MAX);
    if pods + 1 > info.allowed_pods {
        reasons.push("Too many pods".to_owned());
    }
    let mut check = |name: &str, wanted: i64, used: i64, has: i64| {
        if wanted > 0 && wanted > has - used {
            reasons.push(format!("Insufficient {name}"));
            unresolvable |= wanted > has;
        }
    };
    let (used, has) = (&info.requested, &info.allocatable);
    check("cpu", request.cpu_milli, used.cpu_milli, has.cpu_milli);
    check("memory", request.memory_bytes, used.memory_bytes, has.memory_bytes);
    check("ephemeral-storage", request.ephemeral_bytes, used.ephemeral_bytes, has.ephemeral_bytes);
    for (name, wanted) in &request.others {
        let amount = |of: &Resources| of.others.get(name).copied().unwrap_or(0);
        check(name, *wanted, amount(used), amount(has));
    }
    (!reasons.is_empty()).then_some(Rejection { reasons, unresolvable })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Snapshot;
    use crate::testing::{node, pod};
    use serde_json::json;

    #[test]
    fn every_resource_that_is_short_is_named() {
        let mut snapshot = Snapshot::default();
        snapshot.set_node(node("a", json!({"cpu": "1", "memory": "1Gi", "pods": "1"}), json!({})));
        snapshot.place(pod("there", json!({"cpu": "600m"}), json!({})), "a");
        let wanted = pod("p", json!({"cpu": "500m", "memory": "2Gi", "x/gpu": "1"}), json!({}));
        let rejection = shortage(&wanted.request, snapshot.node("a").unwrap()).unwrap();
        assert_eq!(
            rejection.reasons,
            ["Too many pods", "Insufficient cpu", "Insufficient memory", "Insufficient x/gpu"]
        );
        assert!(rejection.unresolvable, "the node will never have two gibibytes");
    }

    #[test]
    fn what_fits_exactly_fits_and_what_asks_for_nothing_always_does() {
        let mut snapshot = Snapshot::default();
        snapshot.set_node(node("a", json!({"cpu": "1"}), json!({})));
        snapshot.place(pod("there", json!({"cpu": "600m"}), json!({})), "a");
        let info = snapshot.node("a").unwrap();
        assert_eq!(shortage(&pod("p", json!({"cpu": "400m"}), json!({})).request, info), None);
        let rejection = shortage(&pod("p", json!({"cpu": "401m"}), json!({})).request, info).unwrap();
        assert!(!rejection.unresolvable);
        assert_eq!(shortage(&pod("p", json!({}), json!({})).request, info), None);
    }
}
