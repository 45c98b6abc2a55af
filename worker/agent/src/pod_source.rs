//! Watches the pods bound to this node in the API server (one watch with a field selector). While the API
//! server is unreachable the known pods are kept; the list after an outage is compared with them, so no
//! change is missed or sent twice. A pod whose object does not decode keeps its previous version and does not
//! block other pods; without a previous version (after a restart of the agent) it is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource as _};
use proto_decode::{BrokenObjects, Decoded};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// A change of the node's pods.
#[derive(Clone, Debug)]
pub enum PodChange {
    /// A pod is new or different.
    Set(Arc<Pod>),
    /// A pod's object has been deleted; holds its last version.
    Gone(Arc<Pod>),
    /// UIDs of all pods that exist, but whose objects do not decode and are not known from before.
    Unreadable(BTreeSet<String>),
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
    let mut source = Source::default();
    loop {
        let event = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            event = stream.next() => event,
        };
        let out = match event {
            Some(Ok(event)) => source.changes(event),
            Some(Err(error)) => {
                warn!(%error, "watching this node's pods; they stay as they are");
                continue;
            }
            None => return,
        };
        for change in out {
            if changes.send(change).await.is_err() {
                return;
            }
        }
    }
}

/// What has been sent so far.
#[derive(Default)]
struct Source {
    broken: BrokenObjects,
    known: Pods,
    /// UIDs of the pods of [`PodChange::Unreadable`].
    unreadable: BTreeSet<String>,
    /// The pods of the list that is being read, and the UIDs of those that are unreadable.
    listed: Option<(Pods, BTreeSet<String>)>,
    synced: bool,
}

/// Pods by UID.
type Pods = BTreeMap<String, Arc<Pod>>;

impl Source {
    /// Returns the changes that an event of the watch brings.
    fn changes(&mut self, event: watcher::Event<Decoded<Pod>>) -> Vec<PodChange> {
        let mut out = Vec::new();
        let mut unreadable = self.unreadable.clone();
        match event {
            watcher::Event::Init => self.listed = Some(Default::default()),
            watcher::Event::InitApply(pod) => {
                let uid = pod.meta().uid.clone().unwrap_or_default();
                let readable = readable(pod, &self.known, &self.broken);
                let (pods, others) = self.listed.get_or_insert_default();
                match readable {
                    Some(pod) => drop(pods.insert(uid, pod)),
                    None => drop(others.insert(uid)),
                }
            }
            watcher::Event::InitDone => {
                let (pods, others) = self.listed.take().unwrap_or_default();
                out.extend(difference(&self.known, &pods));
                (self.known, unreadable) = (pods, others);
            }
            watcher::Event::Apply(pod) => {
                let uid = pod.meta().uid.clone().unwrap_or_default();
                match pod {
                    Decoded::Object(pod) => {
                        let pod = Arc::new(pod);
                        unreadable.remove(&uid);
                        self.known.insert(uid, pod.clone());
                        out.push(PodChange::Set(pod));
                    }
                    Decoded::Broken(pod) => {
                        self.broken.add("pods", &pod);
                        if !self.known.contains_key(&uid) {
                            unreadable.insert(uid);
                        }
                    }
                }
            }
            watcher::Event::Delete(pod) => {
                let uid = pod.meta().uid.clone().unwrap_or_default();
                unreadable.remove(&uid);
                let last = self.known.remove(&uid);
                out.extend(match pod {
                    Decoded::Object(pod) => Some(PodChange::Gone(Arc::new(pod))),
                    Decoded::Broken(_) => last.map(PodChange::Gone),
                });
            }
        }
        if unreadable != self.unreadable {
            self.unreadable = unreadable.clone();
            out.push(PodChange::Unreadable(unreadable));
        }
        if !self.synced && self.listed.is_none() {
            info!(pods = self.known.len(), unreadable = self.unreadable.len(), "pods of this node listed");
            self.synced = true;
            out.push(PodChange::Synced);
        }
        out
    }
}

/// Returns the decoded pod; if it does not decode, its version known before, or `None`.
fn readable(pod: Decoded<Pod>, known: &Pods, broken: &BrokenObjects) -> Option<Arc<Pod>> {
    match pod {
        Decoded::Object(pod) => Some(Arc::new(pod)),
        Decoded::Broken(pod) => {
            broken.add("pods", &pod);
            known.get(pod.meta.uid.as_deref()?).cloned()
        }
    }
}

fn difference(old: &Pods, new: &Pods) -> Vec<PodChange> {
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
    use crate::pod;

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
    fn a_pod_that_never_decoded_is_named_before_orphans_are_collected() {
        let broken = || {
            serde_json::from_value::<Decoded<Pod>>(serde_json::json!({
                "metadata": {"uid": "a"}, "status": {"startTime": "-001-12-31T23:00:00Z"}
            }))
            .unwrap()
        };
        let mut source = Source::default();
        let mut told = Vec::new();
        for event in [watcher::Event::Init, watcher::Event::InitApply(broken()), watcher::Event::InitDone] {
            told.extend(source.changes(event));
        }
        let named = |told: &[PodChange], uids: &[&str]| {
            let wanted: BTreeSet<String> = uids.iter().map(ToString::to_string).collect();
            matches!(told.first(), Some(PodChange::Unreadable(found)) if *found == wanted)
        };
        assert!(named(&told, &["a"]) && matches!(told.last(), Some(PodChange::Synced)), "{told:?}");
        assert!(source.changes(watcher::Event::Apply(broken())).is_empty(), "no news");
        let told = source.changes(watcher::Event::Delete(broken()));
        assert!(named(&told, &[]), "{told:?}");
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
                other => format!("{other:?}"),
            })
            .collect();
        assert_eq!(names, ["gone a", "set c", "set d"]);
    }
}
