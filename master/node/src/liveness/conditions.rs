//! The Ready condition of a node, and those that are unknown with it: read from its object, written through the API.
//! Called by `liveness.rs`.

use std::time::SystemTime;

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use proto_decode::Decoded;
use serde_json::json;

use super::Verdict;

/// The other conditions are the agent's too: when it is silent, nobody knows them.
const AGENT_CONDITIONS: [&str; 3] = ["MemoryPressure", "DiskPressure", "PIDPressure"];

/// Status of the Ready condition; `Missing` for a node that never reported.
pub(super) fn ready_status(node: &Node) -> &str {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready: Option<&NodeCondition> = conditions.and_then(|c| c.iter().find(|c| c.type_ == "Ready"));
    ready.map_or("Missing", |c| c.status.as_str())
}

/// Writes what the verdict says into the node's status.
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
        Verdict::Unknown => {
            let (reason, message) = ("NodeStatusUnknown", "Kubelet stopped posting node status.");
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
    // The answer matters to nobody, so it need not decode.
    let nodes = Api::<Decoded<Node>>::all(client.clone());
    nodes.patch_status(node, &PatchParams::default(), &patch).await.map(drop)
}
