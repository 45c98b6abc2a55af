//! Taints of nodes and tolerations of pods in a snapshot. Used by the taint plugins and NodeUnschedulable.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::snapshot::{NodeInfo, PodInfo};

/// Returns the pod's tolerations.
pub(crate) fn tolerations(pod: &PodInfo) -> &[Toleration] {
    pod.pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
}

/// Returns the node's taints.
pub(crate) fn taints(info: &NodeInfo) -> &[Taint] {
    let spec = info.node.as_ref().and_then(|node| node.spec.as_ref());
    spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}
