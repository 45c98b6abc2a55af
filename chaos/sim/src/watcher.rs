//! Clients that watch: they list, watch from there, and when a watch ends resume from the last revision seen
//! (Kubernetes API concepts, "Efficient detection of changes"). Most resume at another master each time. When
//! the load has ended, additional clients watch each kind at each master and stay there, so that a master that
//! delivers nothing is noticed.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use rand::Rng;
use rand::rngs::StdRng;

use crate::http::{Client, client};
use crate::seams::random::generator;
use crate::workload::{NAMESPACE, Workload};
use chaos_oracle::calls::objects;
use chaos_oracle::history::{Stream, Watched};
use chaos_oracle::kind::Kind;
use chaos_oracle::stream::{End, Reader};

/// Maximum silence of a watch with bookmarks when nothing is wrong; after that the watch is given up.
const SILENCE: Duration = Duration::from_secs(5);
/// Maximum duration of a watch that the server is asked for, in seconds.
const WATCH_SECONDS: u64 = 20;
/// Pause after a watch or a list has ended.
const PAUSE: Duration = Duration::from_millis(100);
/// First number of the clients that each watch one master at the end.
const STAYING: usize = 3000;

/// Masters that a watcher asks.
enum Place {
    /// Any master, a different one each time.
    Any,
    /// Only this master.
    One(IpAddr),
}

struct Watcher {
    workload: Workload,
    random: StdRng,
    kind: Kind,
    place: Place,
    watched: Arc<Mutex<Watched>>,
}

impl Workload {
    /// Runs watching client number `number` until the end of the run; the clients watch the kinds in turn.
    pub async fn watcher(self, number: usize) {
        while !self.begun.load(Ordering::Relaxed) {
            tokio::time::sleep(PAUSE / 2).await;
        }
        let kind = Kind::ALL[number % Kind::ALL.len()];
        Watcher::new(self, number, kind, Place::Any).run().await;
    }

    /// Once the load has ended, watches each kind at each master with one client, from the revision after the
    /// last fault on, or after a list where no master ran at that time.
    pub async fn last_watchers(self) {
        while !self.ended.load(Ordering::Relaxed) {
            tokio::time::sleep(PAUSE).await;
        }
        let from = self.healed_at.load(Ordering::Relaxed);
        let kinds = |master| Kind::ALL.iter().map(move |kind| (master, *kind));
        for (number, (master, kind)) in self.masters().into_iter().flat_map(kinds).enumerate() {
            let watcher = Watcher::new(self.clone(), STAYING + number, kind, Place::One(master));
            // A watch from 0 begins with the present objects, not with what happened since.
            if from > 0 {
                watcher.begin(Stream { from, listed: None, events: Vec::new(), reached: from });
            }
            tokio::spawn(watcher.run());
        }
    }
}

impl Watcher {
    fn new(workload: Workload, number: usize, kind: Kind, place: Place) -> Self {
        let random = generator(workload.seed, 2000 + number as u64);
        let watched = Arc::new(Mutex::new(Watched { client: number, kind, streams: Vec::new() }));
        workload.observer.watches(number, &watched);
        Self { workload, random, kind, place, watched }
    }

    async fn run(mut self) {
        loop {
            let begun = self.with(|watched| !watched.streams.is_empty());
            if begun {
                while self.watch().await == End::Resume {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            while self.list().await.is_none() {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Watched) -> T) -> T {
        look(&mut self.watched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn begin(&self, stream: Stream) {
        self.with(|watched| watched.streams.push(stream));
    }

    fn client(&mut self) -> Client {
        let at = match self.place {
            Place::Any => self.workload.any_master(&mut self.random),
            Place::One(master) => master,
        };
        client(at, self.workload.links.clone())
    }

    /// Begins a stream with a list; `None` if the list failed.
    async fn list(&mut self) -> Option<()> {
        let collection = self.kind.collection(NAMESPACE);
        let answer = self.client().ask(Method::GET, &collection, None).await.ok()?;
        if answer.status != StatusCode::OK {
            return None;
        }
        let from = answer.body["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
        let listed = Some(objects(self.kind, &answer.body));
        self.begin(Stream { from, listed, events: Vec::new(), reached: from });
        Some(())
    }

    /// Runs one watch from the revision that was seen last.
    async fn watch(&mut self) -> End {
        let from = self.with(|watched| watched.streams.last().map_or(0, |stream| stream.reached));
        let seconds = self.random.random_range(1..=WATCH_SECONDS);
        let collection = self.kind.collection(NAMESPACE);
        let path = format!(
            "{collection}?watch=true&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds={seconds}"
        );
        let Ok(response) = self.client().send(Method::GET, &path, None).await else { return End::Resume };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::GONE => return End::Expired,
            _ => return End::Resume,
        }
        self.begin(Stream { from, listed: None, events: Vec::new(), reached: from });
        let mut body = response.into_body();
        let mut reader = Reader::new(self.kind);
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE, body.frame()).await {
            let Some(bytes) = frame.data_ref() else { continue };
            let number = self.with(|watched| {
                if let Some(stream) = watched.streams.last_mut() {
                    reader.take(bytes, stream);
                }
                watched.client
            });
            if let Some(what) = reader.broken() {
                self.workload.observer.violation("watches", format!("client {number}: {what}"));
            }
        }
        reader.end()
    }
}
