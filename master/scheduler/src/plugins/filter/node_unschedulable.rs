//! Enforces NodeUnschedulable: a cordoned node takes only pods that tolerate its taint.

use k8s_openapi::api::core::v1::Taint;
use master_client::tolerates;

use crate::plugins::taints::tolerations;
use crate::plugins::{Cycle, Filter, NodeFilter, Rejection};

pub(crate) struct NodeUnschedulable;

impl Filter for NodeUnschedulable {
    fn prepare<'a>(&self, cycle: &'a Cycle<'_>) -> Option<NodeFilter<'a>> {
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        if tolerations(cycle.pod).iter().any(|toleration| tolerates(toleration, &taint)) {
            return None;
        }
        Some(Box::new(|info| {
            let spec = info.node.as_ref().and_then(|node| node.spec.as_ref());
            let cordoned = spec.and_then(|spec| spec.unschedulable) == Some(true);
            cordoned.then(|| Rejection::unresolvable("node(s) were unschedulable"))
        }))
    }
}
