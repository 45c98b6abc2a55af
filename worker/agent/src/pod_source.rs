//! The pods bound to this node, as the API server has them: one watch with a field selector. While the API is away the last known
//! pods stay as they are; a list after an outage is compared with them, so nothing is missed and nothing is touched twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::pod;

/// What changed.
#[derive(Clone, Debug)]
pub enum Change {
    /// A pod is new or different.
    Set(Arc<Pod>),
    /// A pod's object is gone; its last state.
    Gone(Arc<Pod>),
    /// The first complete list was delivered: pods not seen by now are unknown.
    Synced,
}

/// Watches until `shutdown`, sending every change in order.
pub async fn run(client: Client, node: String, changes: mpsc::Sender<Change>, shutdown: CancellationToken) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let stream = watcher(Api::<Pod>::all(client), config).default_backoff();
    let mut stream = std::pin::pin!(stream);
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
                let pod = Arc::new(pod);
                if let Some(list) = &mut listed {
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
                    out.push(Change::Synced);
                }
            }
            Some(Ok(watcher::Event::Apply(pod))) => {
                let pod = Arc::new(pod);
                known.insert(pod::uid(&pod).to_owned(), pod.clone());
                out.push(Change::Set(pod));
            }
            Some(Ok(watcher::Event::Delete(pod))) => {
                known.remove(pod::uid(&pod));
                out.push(Change::Gone(Arc::new(pod)));
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

fn difference(old: &BTreeMap<String, Arc<Pod>>, new: &BTreeMap<String, Arc<Pod>>) -> Vec<Change> {
    let gone =
        old.iter().filter(|(uid, _)| !new.contains_key(*uid)).map(|(_, pod)| Change::Gone(pod.clone()));
    let version = |pod: &Pod| pod.metadata.resource_version.clone();
    let changed = new.iter().filter(|(uid, pod)| old.get(*uid).is_none_or(|o| version(o) != version(pod)));
    let mut set: Vec<&Arc<Pod>> = changed.map(|(_, pod)| pod).collect();
    // Oldest first: who was here first keeps its place in admission.
    set.sort_by(|a, b| a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp));
    gone.chain(set.into_iter().map(|pod| Change::Set(pod.clone()))).collect()
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
    fn a_list_after_an_outage_yields_what_changed_meanwhile() {
        let table = |pods: &[Arc<Pod>]| pods.iter().map(|p| (pod::uid(p).to_owned(), p.clone())).collect();
        let old = table(&[pod("a", "1"), pod("b", "1"), pod("c", "1")]);
        let new = table(&[pod("b", "1"), pod("c", "2"), pod("d", "1")]);
        let names: Vec<String> = difference(&old, &new)
            .into_iter()
            .map(|change| match change {
                Change::Set(pod) => format!("set {}", pod::uid(&pod)),
                Change::Gone(pod) => format!("gone {}", pod::uid(&pod)),
                Change::Synced => "synced".to_owned(),
            })
            .collect();
        assert_eq!(names, ["gone a", "set c", "set d"]);
    }
}
