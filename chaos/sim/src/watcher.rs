//! Clients that watch: list, watch from there, and when a watch ends go on from
//! what was seen last (Kubernetes API concepts, "Efficient detection of changes").
//! Most go on at another master each time. When the load has ended one more watches
//! each master and stays there, so that no master is silent without being noticed.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use rand::Rng;
use rand::rngs::StdRng;

use crate::http::Client;
use crate::seams::random::generator;
use crate::workload::{COLLECTION, Workload};
use chaos_oracle::calls::objects;
use chaos_oracle::history::{Stream, Watched};
use chaos_oracle::stream::{End, Reader};

/// A watch with bookmarks is never silent for longer, unless something is wrong.
const SILENCE: Duration = Duration::from_secs(5);
/// Longest time the server is asked to keep a watch, in seconds.
const WATCH_SECONDS: u64 = 20;
/// After a watch or a list ended.
const PAUSE: Duration = Duration::from_millis(100);
/// Numbers of the clients that watch one master at the end begin here.
const STAYING: usize = 3000;

/// Whom a watcher asks.
enum Place {
    /// Any master, another one every time.
    Any,
    /// This one alone.
    One(IpAddr),
}

struct Watcher {
    workload: Workload,
    random: StdRng,
    place: Place,
    watched: Arc<Mutex<Watched>>,
}

impl Workload {
    /// Watching client number `number`, until the end of the run.
    pub async fn watcher(self, number: usize) {
        while !self.begun.load(Ordering::Relaxed) {
            tokio::time::sleep(PAUSE / 2).await;
        }
        Watcher::new(self, number, Place::Any).run().await;
    }

    /// A watcher of each master, from the time after the last fault on, once the load has ended.
    pub async fn last_watchers(self) {
        while !self.ended.load(Ordering::Relaxed) {
            tokio::time::sleep(PAUSE).await;
        }
        let from = self.healed_at.load(Ordering::Relaxed);
        for (number, master) in self.masters().into_iter().enumerate() {
            let watcher = Watcher::new(self.clone(), STAYING + number, Place::One(master));
            watcher.begin(Stream { from, listed: None, events: Vec::new(), reached: from });
            tokio::spawn(watcher.run());
        }
    }
}

impl Watcher {
    fn new(workload: Workload, number: usize, place: Place) -> Self {
        let random = generator(workload.seed, 2000 + number as u64);
        let watched = Arc::new(Mutex::new(Watched { client: number, streams: Vec::new() }));
        workload.observer.watches(number, &watched);
        Self { workload, random, place, watched }
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
        Client::new(at, self.workload.links.clone())
    }

    /// Begins a stream with a list.
    async fn list(&mut self) -> Option<()> {
        let answer = self.client().ask(Method::GET, COLLECTION, None).await.ok()?;
        if answer.status != StatusCode::OK {
            return None;
        }
        let from = answer.body["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
        let listed = Some(objects(&answer.body));
        self.begin(Stream { from, listed, events: Vec::new(), reached: from });
        Some(())
    }

    /// One watch, from what was seen last.
    async fn watch(&mut self) -> End {
        let from = self.with(|watched| watched.streams.last().map_or(0, |stream| stream.reached));
        let seconds = self.random.random_range(1..=WATCH_SECONDS);
        let path = format!(
            "{COLLECTION}?watch=true&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds={seconds}"
        );
        let Ok(response) = self.client().send(Method::GET, &path, None).await else { return End::Resume };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::GONE => return End::Expired,
            _ => return End::Resume,
        }
        self.begin(Stream { from, listed: None, events: Vec::new(), reached: from });
        let mut body = response.into_body();
        let mut reader = Reader::default();
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
