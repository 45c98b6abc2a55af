//! Writes pod statuses to the API server: the newest status of each pod, at most one request at a time for a
//! pod, retried until accepted. Also deletes the pod object once nothing of the pod is left on the node.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use proto_env::supervise;
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{Error, pod};

const CONCURRENT_WRITES: usize = 16;
const RETRY: Duration = Duration::from_millis(500);
/// Pause before a write that panicked is tried again.
const PANIC_RETRY: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
struct Entry {
    pod: Arc<Pod>,
    status: PodStatus,
    /// Whether the newest status differs from the one the API server accepted last, or a deletion is due.
    dirty: bool,
    /// Whether to delete the pod object after the status is written.
    delete: bool,
    busy: bool,
    /// Status the API server accepted last; `None` before the first write.
    written: Option<PodStatus>,
}

/// A handle on the writer; clones share its state.
#[derive(Clone)]
pub struct StatusWriter {
    client: Client,
    entries: Arc<Mutex<BTreeMap<String, Entry>>>,
    wake: Arc<Notify>,
}

impl StatusWriter {
    /// Creates a writer; nothing is written before [`Self::run`].
    pub fn new(client: Client) -> Self {
        Self { client, entries: Arc::default(), wake: Arc::new(Notify::new()) }
    }

    /// Returns the status set last for this pod; `None` if none was set.
    pub fn get(&self, uid: &str) -> Option<PodStatus> {
        self.lock().get(uid).map(|entry| entry.status.clone())
    }

    /// Sets the status of a pod; it is sent at once if it differs from the one written last.
    pub fn set(&self, pod: &Arc<Pod>, status: PodStatus) {
        self.update(pod, |entry| {
            // The control plane marks the pods of a lost node as not ready: the status written last is then
            // no longer the one stored, and must be written again.
            let says = |status: &PodStatus, kind: &str| {
                let conditions = status.conditions.as_deref().unwrap_or_default();
                conditions.iter().find(|c| c.type_ == kind).map(|c| c.status.clone())
            };
            let found = pod.status.as_ref();
            let overruled = |written: &PodStatus| {
                let differs = |kind| found.and_then(|status| says(status, kind)) != says(written, kind);
                ["Ready", "ContainersReady"].into_iter().any(differs)
            };
            if !entry.busy && entry.written.as_ref().is_some_and(overruled) {
                entry.written = None;
            }
            entry.dirty |= entry.written.as_ref() != Some(&status);
            entry.status = status;
        });
    }

    /// Requests deletion of the pod object after its status is written; to be called when nothing of the pod
    /// is left on the node.
    pub fn delete_object(&self, pod: &Arc<Pod>) {
        self.update(pod, |entry| {
            entry.delete = true;
            entry.dirty = true;
        });
    }

    /// Forgets a pod whose object has been deleted.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn update(&self, pod: &Arc<Pod>, change: impl FnOnce(&mut Entry)) {
        {
            let mut entries = self.lock();
            let entry = entries.entry(pod::uid(pod).to_owned()).or_insert_with(|| Entry {
                pod: pod.clone(),
                status: pod::status(pod).clone(),
                dirty: false,
                delete: false,
                busy: false,
                written: None,
            });
            entry.pod = pod.clone();
            change(entry);
        }
        self.wake.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends statuses until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let permits = Arc::new(Semaphore::new(CONCURRENT_WRITES));
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.wake.notified() => {}
            }
            for uid in self.claim_dirty() {
                let Ok(permit) = permits.clone().acquire_owned().await else { return };
                let writer = self.clone();
                tokio::spawn(async move {
                    let written = supervise::catch("agent-status", writer.write_one(&uid)).await;
                    drop(permit);
                    if written.is_err() {
                        // The write may panic again, but without it a pod may stay Terminating.
                        tokio::time::sleep(PANIC_RETRY).await;
                        writer.release(&uid);
                    }
                });
            }
        }
    }

    fn claim_dirty(&self) -> Vec<String> {
        let mut entries = self.lock();
        let ready = entries.iter_mut().filter(|(_, entry)| entry.dirty && !entry.busy);
        ready
            .map(|(uid, entry)| {
                entry.busy = true;
                uid.clone()
            })
            .collect()
    }

    /// Lets a write that panicked be tried again.
    fn release(&self, uid: &str) {
        if let Some(entry) = self.lock().get_mut(uid) {
            entry.busy = false;
        }
        self.wake.notify_one();
    }

    async fn write_one(&self, uid: &str) {
        let Some(entry) = self.lock().get(uid).cloned() else { return };
        let outcome = tokio::time::timeout(DEADLINE, self.send(&entry)).await;
        let mut retry = false;
        {
            let mut entries = self.lock();
            let Some(current) = entries.get_mut(uid) else { return };
            current.busy = false;
            match outcome {
                Ok(Ok(gone)) => {
                    current.written = Some(entry.status.clone());
                    current.dirty = current.status != entry.status || (current.delete && !entry.delete);
                    if gone {
                        entries.remove(uid);
                    }
                }
                Ok(Err(error)) => {
                    warn!(pod = %pod::display(&entry.pod), %error, "cannot write the status");
                    retry = true;
                }
                Err(_) => retry = true,
            }
        }
        if retry {
            tokio::time::sleep(RETRY).await;
        }
        self.wake.notify_one();
    }

    /// Writes the status, then deletes the object if requested. Returns whether the object is gone.
    async fn send(&self, entry: &Entry) -> Result<bool, Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), pod::namespace(&entry.pod));
        let name = pod::name(&entry.pod);
        let old = entry.written.as_ref().or(entry.pod.status.as_ref());
        if old != Some(&entry.status) {
            let patch = patch(pod::uid(&entry.pod), old, &entry.status);
            match pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {
                    debug!(pod = %pod::display(&entry.pod), phase = ?entry.status.phase, "status written")
                }
                Err(error) if is_gone(&error) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
        if !entry.delete {
            return Ok(false);
        }
        let preconditions = Preconditions { uid: entry.pod.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams::default().grace_period(0).preconditions(preconditions);
        match pods.delete(name, &params).await {
            Ok(_) => Ok(true),
            Err(error) if is_gone(&error) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

/// Returns whether the pod no longer exists, or its name now belongs to another pod (the UID in the patch or
/// precondition conflicts).
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404
        || (status.code == 409 && status.message.to_lowercase().contains("uid"))
        || (status.code == 422 && status.message.contains("metadata.uid")))
}

/// Builds a strategic merge patch from one status to another, pinned to the pod's UID. Removed fields are
/// null; a changed address list replaces the old one instead of being merged with it.
pub fn patch(uid: &str, old: Option<&PodStatus>, new: &PodStatus) -> Value {
    let as_map = |status: Option<&PodStatus>| match status.map(serde_json::to_value) {
        Some(Ok(Value::Object(map))) => map,
        _ => Map::new(),
    };
    let (old, mut new) = (as_map(old), as_map(Some(new)));
    for key in old.keys() {
        if !new.contains_key(key) && !UNOWNED_FIELDS.contains(&key.as_str()) {
            new.insert(key.clone(), Value::Null);
        }
    }
    for key in ["podIPs", "hostIPs"] {
        if let (Some(before), Some(Value::Array(after))) = (old.get(key), new.get_mut(key))
            && before.as_array() != Some(after)
        {
            after.push(json!({"$patch": "replace"}));
        }
    }
    new.retain(|key, value| old.get(key) != Some(value));
    // Conditions merge by type: only changed ones are sent, so that conditions written by others are not
    // reset.
    if let (Some(Value::Array(before)), Some(Value::Array(after))) =
        (old.get("conditions"), new.get_mut("conditions"))
    {
        after.retain(|condition| !before.contains(condition));
    }
    json!({"metadata": {"uid": uid}, "status": new})
}

/// Fields of the status that other components write.
const UNOWNED_FIELDS: [&str; 4] =
    ["nominatedNodeName", "resize", "resourceClaimStatuses", "extendedResourceClaimStatus"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_holds_what_changed_and_nulls_what_vanished() {
        let old: PodStatus = serde_json::from_value(
            json!({"phase": "Pending", "reason": "x", "podIPs": [{"ip": "1"}], "qosClass": "B"}),
        )
        .unwrap();
        let new: PodStatus =
            serde_json::from_value(json!({"phase": "Running", "podIPs": [{"ip": "2"}], "qosClass": "B"}))
                .unwrap();
        assert_eq!(
            patch("u", Some(&old), &new),
            json!({"metadata": {"uid": "u"}, "status":
                {"phase": "Running", "reason": null, "podIPs": [{"ip": "2"}, {"$patch": "replace"}]}})
        );
    }
}
