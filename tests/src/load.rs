//! Load that runs beside a fault and records every answer: a writer, readers of the API and of a Service, and
//! a watcher that resumes where it stopped. Their rate does not depend on the answers (open loop).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

/// Label that holds the sequence number of a write.
const SEQUENCE: &str = "sequence";
/// Deadline of a single request; after it the request counts as not answered.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of writes in progress.
const WRITES_MAX: usize = 512;

/// Results of a writer's requests.
#[derive(Debug, Default)]
pub struct Writes {
    /// Times at which each acknowledged write was sent and answered, by sequence number.
    pub acknowledged: BTreeMap<u64, (Instant, Instant)>,
    /// Number of writes sent.
    pub sent: u64,
    /// Number of writes refused or not answered.
    pub failed: u64,
}

/// A writer that sends a new ConfigMap every interval, whatever the result of the last: half with a name,
/// half with `generateName`.
pub struct Writer {
    writes: Arc<Mutex<Writes>>,
    stop: Arc<AtomicBool>,
    start: Instant,
    task: JoinHandle<()>,
}

impl Writer {
    /// Starts a writer.
    pub fn start(client: Client, interval: Duration) -> Self {
        let writes = Arc::<Mutex<Writes>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(write_loop(client, interval, writes.clone(), stop.clone()));
        Self { writes, stop, start: Instant::now(), task }
    }

    /// Returns when a write sent after `moment` was first acknowledged. Writes in progress at `moment` may
    /// still be answered and do not count.
    pub fn first_sent_after(&self, moment: Instant) -> Option<Instant> {
        let writes = lock(&self.writes);
        let later = writes.acknowledged.values().filter(|(sent, _)| *sent > moment);
        later.map(|(_, answered)| *answered).min()
    }

    /// Stops the writer; returns the results and the rate reached, in writes a second.
    pub async fn finish(self) -> Result<(Writes, f64)> {
        self.stop.store(true, Ordering::Relaxed);
        let elapsed = self.start.elapsed();
        self.task.await?;
        let writes = std::mem::take(&mut *lock(&self.writes));
        let rate = writes.sent as f64 / elapsed.as_secs_f64();
        Ok((writes, rate))
    }
}

async fn write_loop(client: Client, interval: Duration, writes: Arc<Mutex<Writes>>, stop: Arc<AtomicBool>) {
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let places = Arc::new(tokio::sync::Semaphore::new(WRITES_MAX));
    let mut sequence = 0;
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let Ok(place) = places.clone().acquire_owned().await else { return };
        sequence += 1;
        lock(&writes).sent = sequence;
        let (api, writes) = (api.clone(), writes.clone());
        tokio::spawn(async move {
            let sent = Instant::now();
            let answer = tokio::time::timeout(REQUEST_TIMEOUT, write_one(&api, sequence)).await;
            let mut writes = lock(&writes);
            match answer {
                Ok(Ok(())) => {
                    writes.acknowledged.insert(sequence, (sent, Instant::now()));
                }
                _ => writes.failed += 1,
            }
            drop(place);
        });
    }
    // Holding all permits means that no write is in progress any more.
    let all = u32::try_from(WRITES_MAX).unwrap_or(u32::MAX);
    drop(places.acquire_many(all).await);
}

async fn write_one(api: &Api<ConfigMap>, sequence: u64) -> Result<()> {
    let name = if sequence.is_multiple_of(2) { "name" } else { "generateName" };
    let object = json!({
        "metadata": { name: format!("write-{sequence}-"), "labels": { SEQUENCE: sequence.to_string() } },
        "data": { "sequence": sequence.to_string() }
    });
    let mut object: ConfigMap = serde_json::from_value(object)?;
    if let Some(name) = object.metadata.name.as_mut() {
        *name = name.trim_end_matches('-').to_owned();
    }
    api.create(&PostParams::default(), &object).await?;
    Ok(())
}

/// Checks that no acknowledged write is missing and none was applied twice.
pub async fn check_writes(client: Client, writes: &Writes) -> Result<()> {
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let list = api.list(&ListParams::default().labels(SEQUENCE)).await?;
    let mut found: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for object in &list.items {
        let sequence = object.labels().get(SEQUENCE).context("a write without its label")?.parse()?;
        found.entry(sequence).or_default().push(object.name_any());
    }
    let lost: Vec<u64> = writes.acknowledged.keys().copied().filter(|s| !found.contains_key(s)).collect();
    ensure!(lost.is_empty(), "acknowledged writes are lost: {lost:?}");
    let twice: Vec<_> = found.values().filter(|names| names.len() > 1).collect();
    ensure!(twice.is_empty(), "writes were applied twice: {twice:?}");
    Ok(())
}

/// A reader that asks repeatedly, and records every failure and the longest gap between two answers.
pub struct Reader {
    state: Arc<Mutex<Reads>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

/// Results of a reader's requests.
#[derive(Debug, Default, Clone)]
pub struct Reads {
    /// Number of requests answered.
    pub answered: u64,
    /// Failures, each with its time since the start.
    pub failures: Vec<(Duration, String)>,
    /// Longest time without an answer.
    pub longest_gap: Duration,
}

impl Reads {
    fn record(
        &mut self,
        answer: Result<Result<()>, tokio::time::error::Elapsed>,
        start: Instant,
        last: &mut Instant,
    ) {
        match answer {
            Ok(Ok(())) => {
                self.answered += 1;
                self.longest_gap = self.longest_gap.max(last.elapsed());
                *last = Instant::now();
            }
            Ok(Err(error)) => self.failures.push((start.elapsed(), format!("{error:#}"))),
            Err(_) => self.failures.push((start.elapsed(), "no answer in time".into())),
        }
    }
}

impl Reader {
    /// Starts a reader that calls `ask` every `interval`.
    pub fn start<F>(interval: Duration, ask: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<()>> + Send,
    {
        let state = Arc::<Mutex<Reads>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (reads, ended) = (state.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let (start, mut last) = (Instant::now(), Instant::now());
            while !ended.load(Ordering::Relaxed) {
                let answer = tokio::time::timeout(REQUEST_TIMEOUT, ask()).await;
                lock(&reads).record(answer, start, &mut last);
                tokio::time::sleep(interval).await;
            }
        });
        Self { state, stop, task }
    }

    /// Starts a reader of the API that lists ConfigMaps: a replica may answer a list only after it has heard
    /// from the leader.
    pub fn of_api(client: Client) -> Self {
        Self::start(Duration::from_millis(10), move || {
            let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
            async move { Ok(api.get("kube-root-ca.crt").await.map(drop)?) }
        })
    }

    /// Starts a reader of a Service over plain HTTP, with a new connection for each request.
    pub fn of_service(address: String) -> Self {
        Self::start(Duration::from_millis(20), move || {
            let address = address.clone();
            async move { get(&address).await.map(drop) }
        })
    }

    /// Stops the reader; returns the results.
    pub async fn finish(self) -> Result<Reads> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?;
        Ok(lock(&self.state).clone())
    }
}

/// Sends GET / over a new connection; returns the body.
pub async fn get(address: &str) -> Result<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await.context("connecting")?;
    stream.write_all(format!("GET / HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.context("reading")?;
    ensure!(answer.split(' ').nth(1) == Some("200"), "answered {answer:?}");
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// A watcher of the writes that continues across faults, resumes at the last revision seen, and checks that
/// revisions never go backwards.
pub struct Watcher {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<()>>,
}

#[derive(Debug, Default)]
struct Seen {
    added: BTreeSet<u64>,
    restarts: u64,
}

impl Watcher {
    /// Starts watching at the current revision.
    pub async fn start(client: Client) -> Result<Self> {
        let api: Api<ConfigMap> = Api::default_namespaced(client);
        let list = api.list(&ListParams::default().labels(SEQUENCE)).await?;
        let revision = list.metadata.resource_version.context("a list without a revision")?;
        let seen = Arc::<Mutex<Seen>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(watch_loop(api, revision, seen.clone(), stop.clone()));
        Ok(Self { seen, stop, task })
    }

    /// Stops the watcher once it has seen every acknowledged write; returns how often it resumed.
    pub async fn finish(self, writes: &Writes) -> Result<u64> {
        crate::eventually("every acknowledged write on the watch", async || {
            ensure!(!self.task.is_finished(), "the watch has failed");
            let seen = lock(&self.seen);
            let missing = writes.acknowledged.keys().filter(|s| !seen.added.contains(s)).count();
            ensure!(missing == 0, "{missing} are missing");
            Ok(Some(()))
        })
        .await?;
        self.stop.store(true, Ordering::Relaxed);
        self.task.abort();
        let restarts = lock(&self.seen).restarts;
        Ok(restarts)
    }
}

async fn watch_loop(
    api: Api<ConfigMap>,
    mut revision: String,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let parameters = WatchParams::default().labels(SEQUENCE).timeout(290);
        let stream = match api.watch(&parameters, &revision).await {
            Ok(stream) => stream,
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let mut stream = std::pin::pin!(stream);
        while let Some(Ok(event)) = stream.next().await {
            match event {
                WatchEvent::Added(object) => {
                    let next = object.resource_version().context("an event without a revision")?;
                    let (before, after): (u64, u64) = (revision.parse()?, next.parse()?);
                    ensure!(after > before, "the watch was rewound from {before} to {after}");
                    let sequence = object.labels().get(SEQUENCE).context("no label")?.parse()?;
                    let new = lock(&seen).added.insert(sequence);
                    ensure!(new, "write {sequence} was seen twice");
                    revision = next;
                }
                WatchEvent::Error(error) => anyhow::bail!("the watch ended with {error:?}"),
                _ => {}
            }
        }
        lock(&seen).restarts += 1;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
