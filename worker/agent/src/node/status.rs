//! The status of the Node object: computed from host and runtime, compared with the one in the API server,
//! sent as a patch.

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus,
};
use serde_json::{Value, json};

use super::info::{self, FileSystemSpace};
use crate::clock;
use crate::context::Context;

/// Maximum number of images reported, largest first, as in kubelet.
const MAX_IMAGES: usize = 50;
const MAX_NAMES: usize = 5;
/// kubelet's hard eviction thresholds: a node with less memory, disk space, inodes or image disk space
/// available than these is under pressure.
const MIN_MEMORY_BYTES: u64 = 100 << 20;
const MIN_DISK_PERCENT: u64 = 10;
const MIN_INODES_PERCENT: u64 = 5;
const MIN_IMAGE_DISK_PERCENT: u64 = 15;
/// Threshold usual in managed clusters; kubelet has the signal `pid.available` but no default for it.
const MIN_PIDS_PERCENT: u64 = 10;
/// Deadline of the runtime's answers about its images.
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns whether the node's Ready condition is True.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Computes the current status; the transition times of unchanged conditions are taken from `old`.
pub async fn compute(context: &Context, old: Option<&Node>, port: u16) -> NodeStatus {
    let address =
        |type_: &str, address: &str| NodeAddress { type_: type_.to_owned(), address: address.to_owned() };
    NodeStatus {
        capacity: Some(context.capacity.clone()),
        allocatable: Some(context.allocatable.clone()),
        addresses: Some(vec![
            address("InternalIP", &context.config.node_ip.to_string()),
            address("Hostname", &context.config.node_name),
        ]),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(port) }),
        }),
        node_info: Some(info::system(context)),
        images: Some(images(context).await),
        conditions: Some(conditions(context, old).await),
        ..Default::default()
    }
}

async fn images(context: &Context) -> Vec<ContainerImage> {
    let listed = tokio::time::timeout(PATIENCE, context.cri.list_images()).await;
    let mut images = listed.ok().and_then(Result::ok).unwrap_or_default();
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    images
        .into_iter()
        .map(|image| {
            let names =
                image.repo_digests.into_iter().chain(image.repo_tags).take(MAX_NAMES).collect::<Vec<_>>();
            ContainerImage { names: Some(names), size_bytes: i64::try_from(image.size).ok() }
        })
        .filter(|image| image.names.as_ref().is_some_and(|names| !names.is_empty()))
        .take(MAX_IMAGES)
        .collect()
}

/// Returns the disk that holds images; `None` if the runtime does not report it.
async fn image_disk(context: &Context) -> Option<FileSystemSpace> {
    let answer = tokio::time::timeout(PATIENCE, context.cri.image_fs_info()).await.ok()?.ok()?;
    let id = answer.image_filesystems.into_iter().next()?.fs_id?;
    info::disk(std::path::Path::new(&id.mountpoint))
}

async fn conditions(context: &Context, old: Option<&Node>) -> Vec<NodeCondition> {
    let (memory, disk) = info::pressure(&context.config);
    let low_memory = memory.is_some_and(|bytes| bytes < MIN_MEMORY_BYTES);
    let image_disk = image_disk(context).await;
    let low = |disk: &Option<FileSystemSpace>, bytes, inodes| {
        disk.as_ref().is_some_and(|disk| disk.below(bytes, inodes))
    };
    let low_disk = low(&disk, MIN_DISK_PERCENT, MIN_INODES_PERCENT)
        || low(&image_disk, MIN_IMAGE_DISK_PERCENT, MIN_INODES_PERCENT);
    let low_pids = info::free_pids().is_some_and(|(free, total)| free < total / 100 * MIN_PIDS_PERCENT);
    let (ready, reason, message) = readiness(context);
    let pressure = |type_: &str, low: bool, bad: (&str, &str), good: (&str, &str)| {
        let (reason, message) = if low { bad } else { good };
        condition(old, type_, low, reason, message)
    };
    vec![
        pressure(
            "MemoryPressure",
            low_memory,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        pressure(
            "DiskPressure",
            low_disk,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressure(
            "PIDPressure",
            low_pids,
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
        condition(old, "Ready", ready, &reason, &message),
    ]
}

/// Returns whether the node is ready, with reason and message of the Ready condition.
fn readiness(context: &Context) -> (bool, String, String) {
    let health = context.config.health.borrow().clone();
    if health.ready {
        (true, "KubeletReady".to_owned(), "kubelet is posting ready status".to_owned())
    } else {
        (false, "KubeletNotReady".to_owned(), health.reason)
    }
}

fn condition(old: Option<&Node>, type_: &str, holds: bool, reason: &str, message: &str) -> NodeCondition {
    let status = if holds { "True" } else { "False" };
    let before = old.and_then(|node| node.status.as_ref()).and_then(|s| s.conditions.as_ref());
    let before = before.into_iter().flatten().find(|c| c.type_ == type_ && c.status == status);
    let now = clock::now();
    NodeCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(now)),
    }
}

/// Returns whether `fresh` differs from the node's status, heartbeat times aside.
pub fn differs(node: &Node, fresh: &NodeStatus) -> bool {
    let Some(current) = &node.status else { return true };
    let plain = |status: &NodeStatus| {
        let conditions: Vec<(String, String, Option<String>, Option<String>)> = status
            .conditions
            .iter()
            .flatten()
            .map(|c| (c.type_.clone(), c.status.clone(), c.reason.clone(), c.message.clone()))
            .filter(|(type_, ..)| {
                ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"].contains(&type_.as_str())
            })
            .collect();
        conditions
    };
    let mut before = plain(current);
    let mut after = plain(fresh);
    before.sort();
    after.sort();
    before != after
        || current.images != fresh.images
        || current.capacity != fresh.capacity
        || current.allocatable != fresh.allocatable
        || current.addresses != fresh.addresses
        || current.daemon_endpoints != fresh.daemon_endpoints
        || current.node_info != fresh.node_info
}

/// Builds a strategic merge patch that sets this status; conditions and addresses merge by type.
pub fn patch(status: &NodeStatus) -> Value {
    json!({ "status": status })
}
