//! Clients that watch: they list, watch from there, and when a watch ends resume from the last revision seen
//! (Kubernetes API concepts, "Efficient detection of changes"). Most move from master to master. One client
//! stays with each master (its witness) and reports every change that this master applied: together the
//! witnesses' changes are the truth that the oracle judges by, known only as far as it has no gap.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chaos_oracle::calls::objects;
use chaos_oracle::history::{Stream, Watched};
use chaos_oracle::kind::Kind;
use chaos_oracle::stream::{End, Reader};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rand::Rng;
use rand::rngs::StdRng;

use crate::http::{Client, client};
use crate::observer::Covered;
use crate::workload::{Workload, generator};

/// Maximum silence of a watch with bookmarks when nothing is wrong; after that the watch is given up.
const SILENCE: Duration = Duration::from_secs(5);
/// Maximum duration of a roaming client's watch that the server is asked for, in seconds.
const WATCH_SECONDS: u64 = 20;
/// Maximum duration of a witness's watch that the server is asked for, in seconds.
const WITNESS_SECONDS: u64 = 300;
/// Pause after a watch has ended.
const PAUSE: Duration = Duration::from_millis(100);
/// First client number of witnesses; other watchers have the numbers of their clients.
const WITNESS: usize = 10_000;

/// Returns the number of the client that watches only this master.
pub fn witness_of(master: u64) -> Option<usize> {
    usize::try_from(master).ok().map(|master| WITNESS + master)
}

/// Revisions that the witnesses have seen without a gap; clones share the data.
#[derive(Clone, Default)]
pub struct Truth(Arc<Mutex<Vec<Covered>>>);

impl Truth {
    /// Returns all covered ranges.
    pub fn covered(&self) -> Vec<Covered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn begin(&self, from: u64) -> usize {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.push(Covered { from, to: from });
        parts.len() - 1
    }

    fn extend(&self, part: usize, to: u64) {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = parts.get_mut(part) {
            part.to = part.to.max(to);
        }
    }
}

/// Masters that a watcher asks.
enum Place {
    /// Any master, a different one each time.
    Roams(Box<StdRng>),
    /// Only one master.
    Stays { at: SocketAddr, master: u64, truth: Truth, part: usize },
}

struct Watcher {
    workload: Workload,
    place: Place,
    watched: Watched,
}

impl Workload {
    /// Runs roaming watcher number `number`. It goes on after the load has ended, until `stop`, so that it
    /// sees the last changes.
    pub async fn roam(self, number: usize, stop: tokio_util::sync::CancellationToken) {
        let place = Place::Roams(Box::new(generator(self.seed, 2000 + number as u64)));
        let watched = Watched { client: number, kind: Kind::ConfigMap, streams: Vec::new() };
        let watcher = Watcher { workload: self, place, watched };
        watcher.run(stop).await;
    }

    /// Runs the witness of master `master` at address `at`, from revision `origin` on, at which none of the
    /// clients' objects existed.
    pub async fn witness(
        self,
        master: u64,
        at: SocketAddr,
        origin: u64,
        truth: Truth,
        stop: tokio_util::sync::CancellationToken,
    ) {
        let client = witness_of(master).unwrap_or(WITNESS);
        let listed = Some(Default::default());
        let stream = Stream { from: origin, listed, events: Vec::new(), reached: origin };
        let watched = Watched { client, kind: Kind::ConfigMap, streams: vec![stream] };
        let part = truth.begin(origin);
        let place = Place::Stays { at, master, truth, part };
        Watcher { workload: self, place, watched }.run(stop).await;
    }
}

impl Watcher {
    async fn run(mut self, stop: tokio_util::sync::CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.work() => {}
        }
        self.workload.observer.watched(self.watched);
    }

    async fn work(&mut self) {
        loop {
            if self.watched.streams.is_empty() && self.list().await.is_none() {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            while self.watch().await == End::Resume {
                tokio::time::sleep(PAUSE).await;
            }
            while self.list().await.is_none() {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn client(&mut self) -> Client {
        let at = match &mut self.place {
            Place::Roams(random) => self.workload.any_master(random),
            Place::Stays { at, .. } => *at,
        };
        client(&self.workload.access, at)
    }

    /// Begins a stream with a list; `None` if the list failed.
    async fn list(&mut self) -> Option<()> {
        let collection = self.workload.collection.clone();
        let answer = self.client().ask(Method::GET, &collection, None).await.ok()?;
        if answer.status != StatusCode::OK {
            return None;
        }
        let from = answer.body["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
        let listed = Some(objects(Kind::ConfigMap, &answer.body));
        self.watched.streams.push(Stream { from, listed, events: Vec::new(), reached: from });
        if let Place::Stays { truth, part, .. } = &mut self.place {
            *part = truth.begin(from);
        }
        Some(())
    }

    /// Runs one watch from the revision that was seen last.
    async fn watch(&mut self) -> End {
        let from = self.watched.streams.last().map_or(0, |stream| stream.reached);
        let seconds = match &mut self.place {
            Place::Roams(random) => random.random_range(1..=WATCH_SECONDS),
            Place::Stays { .. } => WITNESS_SECONDS,
        };
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds={seconds}",
            self.workload.collection
        );
        let Ok(response) = self.client().send(Method::GET, &path, None).await else { return End::Resume };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::GONE => return End::Expired,
            _ => return End::Resume,
        }
        self.watched.streams.push(Stream { from, listed: None, events: Vec::new(), reached: from });
        self.follow(response.into_body()).await
    }

    async fn follow(&mut self, mut body: Incoming) -> End {
        let mut reader = Reader::new(Kind::ConfigMap);
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE, body.frame()).await {
            let (Some(bytes), Some(stream)) = (frame.data_ref(), self.watched.streams.last_mut()) else {
                continue;
            };
            let events = reader.take(bytes, stream);
            let (observer, client) = (&self.workload.observer, self.watched.client);
            observer.reaches(client, stream.reached);
            if let Some(what) = reader.broken() {
                observer.violation("watches", format!("client {client}: {what}"));
            }
            if let Place::Stays { master, truth, part, .. } = &self.place {
                events.into_iter().for_each(|event| observer.applied(*master, event));
                truth.extend(*part, stream.reached);
            }
        }
        reader.end()
    }
}
