//! Serves lists of the node's pods: those known from the API server, and those of the runtime.

use std::collections::BTreeMap;

use http::{Response, StatusCode};
use k8s_cri::v1::ContainerState;
use serde_json::{Value, json};

use super::{Body, text};
use crate::context::Context;
use crate::cri::labels;
use crate::pod;

fn list(items: Vec<Value>) -> Response<Body> {
    super::json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

/// Serves `/pods`: every pod bound to this node, with the status known to the agent.
pub fn all(context: &Context) -> Response<Body> {
    let items = context.pods.all().into_iter().filter_map(|entry| {
        let mut pod = (*entry.pod).clone();
        if let Some(status) = context.statuses.get(pod::uid(&pod)) {
            pod.status = Some(status);
        }
        serde_json::to_value(pod).ok()
    });
    list(items.collect())
}

/// Serves `/runningpods/`: pods with a running container, from the runtime alone.
pub async fn running(context: &Context) -> Response<Body> {
    let containers = match context.cri.list_containers(None).await {
        Ok(containers) => containers,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let mut pods: BTreeMap<String, Value> = BTreeMap::new();
    for container in containers.iter().filter(|c| c.state == ContainerState::ContainerRunning as i32) {
        let label = |name: &str| container.labels.get(name).cloned().unwrap_or_default();
        let uid = label(labels::POD_UID);
        let pod = pods.entry(uid.clone()).or_insert_with(|| {
            json!({"metadata": {"name": label(labels::POD_NAME), "namespace": label(labels::POD_NAMESPACE), "uid": uid},
                   "spec": {"containers": []}, "status": {}})
        });
        if let Some(list) = pod["spec"]["containers"].as_array_mut() {
            list.push(
                json!({"name": label(labels::CONTAINER_NAME), "image": container.image_ref, "resources": {}}),
            );
        }
    }
    list(pods.into_values().collect())
}
