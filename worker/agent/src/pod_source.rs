//! Watches the pods bound to this node in the API server (one watch with a field selector). While the API
//! server is unreachable the known pods are kept; the list after an outage is compared with them, so no
//! change is missed or sent twice. A pod whose object does not decode keeps its previous version and does not
//! block other pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource as _};
use proto_decode::{BrokenObjects, Decoded};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::pod;

/// A change of the node's pods.
#[derive(Clone, Debug)]
pub enum PodChange {
    /// A pod is new or different.
    Set(Arc<Pod>),
    /// A pod's object has been deleted; holds its last version.
    Gone(Arc<Pod>),
    /// The first complete list has been delivered: pods not sent before it do not exist.
    Synced,
}

/// Watches the pods of `node` until `shutdown`, sending every change in order.
pub async fn run(
    client: Client,
    node: String,
    changes: mpsc::Sender<PodChange>,
    shutdown: CancellationToken,
) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let stream = watcher(Api::<Decoded<Pod>>::all(client), config).default_backoff();
    let mut stream = std::pin::pin!(stream);
    let broken = BrokenObjects::default();
    let mut known: BTreeMap<String, Arc<Pod>> = BTreeMap::new();
    let mut listed: Option<BTreeMap<String, Arc<Pod>>> = None;
    let mut synced = false;
    loop {
        let event = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            event = stream.next() => event,
        };
        let mut out = Vec::new();
        match event {
            Some(Ok(watcher::Event::Init)) => listed = Some(BTreeMap::new()),
            Some(Ok(watcher::Event::InitApply(pod))) => {
                if let (Some(list), Some(pod)) = (&mut listed, readable(pod, &known, &broken)) {
                    list.insert(pod::uid(&pod).to_owned(), pod);
                }
            }
            Some(Ok(watcher::Event::InitDone)) => {
                let list = listed.take().unwrap_or_default();
                out.extend(difference(&known, &list));
                known = list;
                if !synced {
                    info!(pods = known.len(), "pods of this node listed");
                    synced = true;
                    out.push(PodChange::Synced);
                }
            }
            Some(Ok(watcher::Event::Apply(pod))) => {
                if let Decoded::Broken(pod) = &pod {
                    broken.add("pods", pod);
                }
                if let Decoded::Object(pod) = pod {
                    let pod = Arc::new(pod);
                    known.insert(pod::uid(&pod).to_owned(), pod.clone());
                    out.push(PodChange::Set(pod));
                }
            }
            Some(Ok(watcher::Event::Delete(pod))) => {
                let last = known.remove(pod.meta().uid.as_deref().unwrap_or_default());
                out.extend(match pod {
                    Decoded::Object(pod) => Some(PodChange::Gone(Arc::new(pod))),
                    Decoded::Broken(_) => last.map(PodChange::Gone),
                });
            }
            Some(Err(error)) => warn!(%error, "watching this node's pods; they stay as they are"),
            None => return,
        }
        for change in out {
            if changes.send(change).await.is_err() {
                return;
            }
        }
    }
}

/// Returns the decoded pod; if it does not decode, its version known before, or `None`.
fn readable(
    pod: Decoded<Pod>,
    known: &BTreeMap<String, Arc<Pod>>,
    broken: &BrokenObjects,
) -> Option<Arc<Pod>> {
    match pod {
        Decoded::Object(pod) => Some(Arc::new(pod)),
        Decoded::Broken(pod) => {
            broken.add("pods", &pod);
            known.get(pod.meta.uid.as_deref()?).cloned()
        }
    }
}

fn difference(old: &BTreeMap<String, Arc<Pod>>, new: &BTreeMap<String, Arc<Pod>>) -> Vec<PodChange> {
    let gone =
        old.iter().filter(|(uid, _)| !new.contains_key(*uid)).map(|(_, pod)| PodChange::Gone(pod.clone()));
    let version = |pod: &Pod| pod.metadata.resource_version.clone();
    let changed = new.iter().filter(|(uid, pod)| old.get(*uid).is_none_or(|o| version(o) != version(pod)));
    let mut set: Vec<&Arc<Pod>> = changed.map(|(_, pod)| pod).collect();
    // Oldest first, so that older pods are admitted before newer ones.
    set.sort_by(|a, b| a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp));
    gone.chain(set.into_iter().map(|pod| PodChange::Set(pod.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, version: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(serde_json::json!({"metadata": {"uid": uid, "resourceVersion": version}}))
                .unwrap(),
        )
    }

    #[test]
    fn a_pod_that_does_not_decode_stays_as_it_was() {
        let known = BTreeMap::from([("a".to_owned(), pod("a", "1"))]);
        let decode = |uid: &str| {
            let time = "-001-12-31T23:00:00Z";
            serde_json::from_value::<Decoded<Pod>>(serde_json::json!({
                "metadata": {"uid": uid, "resourceVersion": "2"}, "status": {"startTime": time}
            }))
            .unwrap()
        };
        let broken = BrokenObjects::default();
        assert_eq!(readable(decode("a"), &known, &broken), Some(pod("a", "1")));
        assert_eq!(readable(decode("b"), &known, &broken), None);
        assert_eq!(broken.total(), 1, "both have no name, and one revision");
    }

    #[test]
    fn a_list_after_an_outage_yields_what_changed_meanwhile() {
        let table = |pods: &[Arc<Pod>]| pods.iter().map(|p| (pod::uid(p).to_owned(), p.clone())).collect();
        let old = table(&[pod("a", "1"), pod("b", "1"), pod("c", "1")]);
        let new = table(&[pod("b", "1"), pod("c", "2"), pod("d", "1")]);
        let names: Vec<String> = difference(&old, &new)
            .into_iter()
            .map(|change| match change {
                PodChange::Set(pod) => format!("set {}", pod::uid(&pod)),
                PodChange::Gone(pod) => format!("gone {}", pod::uid(&pod)),
                PodChange::Synced => "synced".to_owned(),
            })
            .collect();
        assert_eq!(names, ["gone a", "set c", "set d"]);
    }
}
