//! The conditions of a node that its agent reports: reads Ready from the Node object, writes Ready and the
//! others through the API. Called by `liveness.rs`.

use std::time::SystemTime;

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use proto_decode::Decoded;
use serde_json::json;

use super::Verdict;

/// Conditions other than Ready that the agent reports: they become Unknown when it is silent.
const AGENT_CONDITIONS: [&str; 3] = ["MemoryPressure", "DiskPressure", "PIDPressure"];

/// Returns the status of the Ready condition; `Missing` for a node that never reported it.
pub(super) fn ready_status(node: &Node) -> &str {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready: Option<&NodeCondition> = conditions.and_then(|c| c.iter().find(|c| c.type_ == "Ready"));
    ready.map_or("Missing", |c| c.status.as_str())
}

/// Writes a verdict into the node's status.
pub(super) async fn write(
    client: &Client,
    node: &str,
    verdict: &Verdict,
    now: SystemTime,
) -> Result<(), kube::Error> {
    let now = jiff::Timestamp::try_from(now).unwrap_or_default();
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": now,
        })
    };
    let conditions = match verdict {
        Verdict::Unknown | Verdict::NeverReported => {
            let (reason, message) = if *verdict == Verdict::Unknown {
                ("NodeStatusUnknown", "Kubelet stopped posting node status.")
            } else {
                ("NodeStatusNeverUpdated", "Kubelet never posted node status.")
            };
            let kinds = std::iter::once("Ready").chain(AGENT_CONDITIONS);
            kinds.map(|kind| condition(kind, "Unknown", reason, message)).collect()
        }
        Verdict::Ready => vec![
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
            condition(
                "MemoryPressure",
                "False",
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition(
                "PIDPressure",
                "False",
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
            ),
        ],
        Verdict::NotReady(reason) => vec![condition("Ready", "False", "KubeletNotReady", reason)],
    };
    let patch = Patch::Strategic(json!({ "status": { "conditions": conditions } }));
    // The answer is not used, so it need not decode.
    let nodes = Api::<Decoded<Node>>::all(client.clone());
    nodes.patch_status(node, &PatchParams::default(), &patch).await.map(drop)
}
