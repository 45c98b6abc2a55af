//! Notices changes in the runtime and names the pods concerned: by the CRI event stream, else by comparing
//! lists each second (kubelet's PLEG) and more often for some moments after a change. With a stream, lists
//! are still compared once a minute, because events can be lost.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Cri, labels};
use crate::Error;
use crate::node::health::LastRelist;

/// Time between comparisons of the lists: without an event stream, and with one.
const RELIST: Duration = Duration::from_secs(1);
const RELIST_BESIDE_EVENTS: Duration = Duration::from_secs(60);
/// Without a stream: time between comparisons after a change, and how long that pace lasts. Init containers
/// and jobs end soon after they start.
const RELIST_FAST: Duration = Duration::from_millis(100);
const FAST_FOR: Duration = Duration::from_secs(3);
const RECONNECT: Duration = Duration::from_millis(200);

/// UID of the pod and state of each sandbox or container, by its id.
type States = BTreeMap<String, (String, i32)>;

type Stream = tonic::Streaming<k8s_cri::v1::ContainerEventResponse>;

/// Calls `changed` with the UID of each pod whose sandboxes or containers changed, until `shutdown`. Each
/// comparison of the lists is recorded in `relist`.
pub async fn follow(
    cri: Cri,
    changed: impl Fn(&str) + Send,
    relist: LastRelist,
    shutdown: CancellationToken,
) {
    let (known, fast_until) = (States::new(), Instant::now());
    let mut follower = Follower { cri, relist, known, fast_until, may_stream: true };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        () = follower.run(&changed) => {}
    }
}

struct Follower {
    cri: Cri,
    relist: LastRelist,
    known: States,
    fast_until: Instant,
    may_stream: bool,
}

impl Follower {
    async fn run(&mut self, changed: &impl Fn(&str)) {
        let mut stream = None;
        loop {
            if stream.is_none() && self.may_stream {
                stream = self.subscribe().await;
            }
            self.relist(changed).await;
            match &mut stream {
                Some(events) => {
                    if !self.pass_on(events, changed).await {
                        stream = None;
                        // The runtime may be restarting: wait instead of reconnecting in a busy loop.
                        tokio::time::sleep(RECONNECT).await;
                    }
                }
                None => self.pause().await,
            }
        }
    }

    async fn subscribe(&mut self) -> Option<Stream> {
        match self.cri.container_events().await {
            Ok(events) => return Some(events),
            Err(Error::Cri { status, .. }) if status.code() == tonic::Code::Unimplemented => {
                self.without_stream()
            }
            Err(error) => debug!(%error, "no container events yet"),
        }
        None
    }

    fn without_stream(&mut self) {
        info!("the runtime has no container events; comparing lists each second");
        self.may_stream = false;
    }

    /// Waits until the next comparison is due.
    async fn pause(&mut self) {
        let now = Instant::now();
        if now < self.fast_until {
            return tokio::time::sleep(RELIST_FAST).await;
        }
        tokio::select! {
            biased;
            () = self.cri.started_something() => self.fast_until = now + RELIST + FAST_FOR,
            () = tokio::time::sleep(RELIST) => {}
        }
    }

    /// Passes events on until a comparison is due. Returns whether the stream is still open.
    async fn pass_on(&mut self, events: &mut Stream, changed: &impl Fn(&str)) -> bool {
        let timer = tokio::time::sleep(RELIST_BESIDE_EVENTS);
        tokio::pin!(timer);
        loop {
            let event = tokio::select! {
                biased;
                event = events.message() => event,
                () = &mut timer => return true,
            };
            match event {
                Ok(Some(event)) => match event.pod_sandbox_status.and_then(|s| s.metadata) {
                    Some(metadata) => changed(&metadata.uid),
                    // An event without its sandbox names no pod: compare the lists to find it.
                    None => self.relist(changed).await,
                },
                Ok(None) => return false,
                Err(status) if status.code() == tonic::Code::Unimplemented => {
                    self.without_stream();
                    return false;
                }
                Err(status) => {
                    debug!(%status, "container events ended");
                    return false;
                }
            }
        }
    }

    async fn relist(&mut self, changed: &impl Fn(&str)) {
        let states = match list(&self.cri).await {
            Ok(states) => states,
            Err(error) => return warn!(%error, "cannot list what the runtime has"),
        };
        let uids = differing(&self.known, &states);
        if !uids.is_empty() {
            self.fast_until = Instant::now() + FAST_FOR;
        }
        for uid in uids {
            changed(&uid);
        }
        self.known = states;
        self.relist.done();
    }
}

async fn list(cri: &Cri) -> Result<States, Error> {
    let (sandboxes, containers) =
        futures::future::try_join(cri.list_pod_sandboxes(None), cri.list_containers(None)).await?;
    let sandboxes = sandboxes.into_iter().map(|s| (s.id, s.labels, s.state));
    let containers = containers.into_iter().map(|c| (c.id, c.labels, c.state));
    Ok(sandboxes
        .chain(containers)
        .filter_map(|(id, labels, state)| Some((id, (labels.get(labels::POD_UID)?.clone(), state))))
        .collect())
}

/// Returns the UIDs of pods with a sandbox or container that is new, gone or in another state.
fn differing(old: &States, new: &States) -> Vec<String> {
    let appeared = new.iter().filter(|(id, state)| old.get(*id) != Some(state)).map(|(_, (uid, _))| uid);
    let vanished = old.iter().filter(|(id, _)| !new.contains_key(*id)).map(|(_, (uid, _))| uid);
    let mut uids: Vec<String> = appeared.chain(vanished).cloned().collect();
    uids.sort();
    uids.dedup();
    uids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_with_new_gone_or_changed_containers_are_named_once() {
        let state = |uid: &str, state: i32| (uid.to_owned(), state);
        let old = States::from([("a".to_owned(), state("1", 0)), ("b".to_owned(), state("2", 0))]);
        let new = States::from([
            ("a".to_owned(), state("1", 1)),
            ("c".to_owned(), state("3", 0)),
            ("d".to_owned(), state("3", 0)),
        ]);
        assert_eq!(differing(&old, &new), ["1", "2", "3"]);
        assert!(differing(&new, &new).is_empty());
    }
}
