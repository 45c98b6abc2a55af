//! Clients that watch: list, watch from there, and when a watch ends go on from
//! what was seen last, at another master. They report every event in the order
//! it came (Kubernetes API concepts, "Efficient detection of changes").

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::Value;

use crate::http::Client;
use crate::seams::random::generator;
use crate::workload::{COLLECTION, Workload};
use chaos_oracle::calls::{KEY_PREFIX, objects, versioned};
use chaos_oracle::history::{Change, Event, Stream, Watched};

/// A watch with bookmarks is never silent for longer, unless something is wrong.
const SILENCE: Duration = Duration::from_secs(5);
/// Longest time the server is asked to keep a watch, in seconds.
const WATCH_SECONDS: u64 = 20;

/// How a watch ended.
enum End {
    /// It can be resumed from what was seen last.
    Resume,
    /// What was seen last is no longer known: list again.
    Expired,
}

struct Watcher {
    /// The last bookmark of the stream.
    promised: u64,
    workload: Workload,
    random: StdRng,
    watched: Watched,
}

impl Workload {
    /// Watching client number `number`, until the end of the run.
    pub async fn watcher(self, number: usize) {
        let random = generator(self.seed, 2000 + number as u64);
        let watched = Watched { client: number, streams: Vec::new() };
        let mut watcher = Watcher { workload: self, random, watched, promised: 0 };
        while !watcher.workload.begun.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        loop {
            let listed = watcher.list().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            if listed.is_some() {
                while let End::Resume = watcher.watch().await {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Watcher {
    fn any_master(&mut self) -> IpAddr {
        self.workload.any_master(&mut self.random)
    }

    fn report(&self) {
        self.workload.observer.watched(self.watched.clone());
    }

    /// Begins a stream with a list.
    async fn list(&mut self) -> Option<()> {
        let mut client = Client::new(self.any_master(), self.workload.links.clone());
        let answer = client.ask(Method::GET, COLLECTION, None).await.ok()?;
        if answer.status != StatusCode::OK {
            return None;
        }
        let from = answer.body["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
        let listed = Some(objects(&answer.body));
        self.watched.streams.push(Stream { from, listed, events: Vec::new(), reached: from });
        self.report();
        Some(())
    }

    /// One watch, from what was seen last.
    async fn watch(&mut self) -> End {
        let from = self.watched.streams.last().map_or(0, |stream| stream.reached);
        let seconds = self.random.random_range(1..=WATCH_SECONDS);
        let path = format!(
            "{COLLECTION}?watch=true&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds={seconds}"
        );
        let mut client = Client::new(self.any_master(), self.workload.links.clone());
        let Ok(response) = client.send(Method::GET, &path, None).await else { return End::Resume };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::GONE => return End::Expired,
            _ => return End::Resume,
        }
        self.watched.streams.push(Stream { from, listed: None, events: Vec::new(), reached: from });
        self.promised = 0;
        let mut body = response.into_body();
        let mut pending = Vec::new();
        let mut end = End::Resume;
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE, body.frame()).await {
            pending.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
            while let Some(line) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=line).collect();
                if let Some(ended) = self.event(&line) {
                    end = ended;
                }
            }
        }
        self.report();
        end
    }

    fn event(&mut self, line: &[u8]) -> Option<End> {
        let event: Value = serde_json::from_slice(line).ok()?;
        let object = &event["object"];
        if event["type"] == "ERROR" {
            return Some(if object["code"] == 410 { End::Expired } else { End::Resume });
        }
        let stream = self.watched.streams.last_mut()?;
        let revision: u64 = object["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
        if event["type"] == "BOOKMARK" {
            stream.reached = stream.reached.max(revision);
            self.promised = stream.reached;
            return None;
        }
        // A bookmark says that nothing up to it is still to come ("Bookmarkable" in etcd's API guarantees).
        if revision <= self.promised {
            let what =
                format!("client {}: {revision} after a bookmark at {}", self.watched.client, self.promised);
            self.workload.observer.violation("watches", what);
        }
        let key = object["metadata"]["name"].as_str()?.to_owned();
        stream.reached = revision;
        if key.starts_with(KEY_PREFIX) {
            let value = versioned(object)?.value;
            let deleted = event["type"] == "DELETED";
            let change = if deleted { Change::Deleted { value } } else { Change::Put { value } };
            stream.events.push(Event { revision, key, change });
        }
        None
    }
}
