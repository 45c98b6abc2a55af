//! Writes decisions to the API: the binding of a pod to its node, or the condition and event that say why
//! there is none. Called by `lib.rs`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams, Request};
use kube::{Client, Resource};
use master_client::{EventType, Recorder, reference};
use serde_json::json;

use crate::snapshot::PodInfo;

/// Why a binding failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("cannot build the request: {0}")]
    Request(String),
}

/// Binds the pod to the node.
pub(crate) async fn bind(client: &Client, pod: &PodInfo, node: &str) -> Result<(), Error> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.key.name.clone()),
            namespace: Some(pod.key.namespace.clone()),
            uid: pod.pod.metadata.uid.clone(),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let body = serde_json::to_vec(&binding).map_err(|error| Error::Request(error.to_string()))?;
    let request = Request::new(Pod::url_path(&(), Some(&pod.key.namespace)))
        .create_subresource("binding", &pod.key.name, &PostParams::default(), body)
        .map_err(|error| Error::Request(error.to_string()))?;
    client.request::<serde_json::Value>(request).await?;
    Ok(())
}

/// Records the event of a successful binding.
pub(crate) fn record_bound(recorder: &Recorder, pod: &PodInfo, node: &str) {
    let message = format!("Successfully assigned {}/{} to {node}", pod.key.namespace, pod.key.name);
    recorder.event(reference(&*pod.pod), EventType::Normal, "Scheduled", message);
}

/// Reports that there is no node for the pod: records an event, and sets the PodScheduled condition when it
/// changes.
pub(crate) async fn report_failure(
    client: &Client,
    recorder: &Recorder,
    pod: &PodInfo,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Result<(), kube::Error> {
    recorder.event(reference(&*pod.pod), EventType::Warning, "FailedScheduling", message);
    let conditions = pod.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let current = conditions.and_then(|all| all.iter().find(|condition| condition.type_ == "PodScheduled"));
    let same = current.is_some_and(|current| {
        current.status == "False"
            && current.reason.as_deref() == Some(reason)
            && current.message.as_deref() == Some(message)
    });
    if same {
        return Ok(());
    }
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or_default());
    let since = current
        .filter(|current| current.status == "False")
        .and_then(|current| current.last_transition_time.clone())
        .unwrap_or(now);
    let patch = json!({
        "metadata": { "uid": pod.pod.metadata.uid },
        "status": { "conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": reason,
            "message": message,
            "lastProbeTime": null,
            "lastTransitionTime": since,
            "observedGeneration": pod.pod.metadata.generation,
        }]}
    });
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.key.namespace);
    pods.patch_status(&pod.key.name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    Ok(())
}
