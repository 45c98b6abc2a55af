//! Watch fan-out: many watchers of one prefix, each with a stream of its own, spread
//! over all members; measures the time from sending a write until the last watcher got it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tonic::codec::Streaming;

use super::Setup;
use super::group::{Group, PREFIX};
use super::load::{ProcessorTime, Values};
use super::table::{Figure, Line, Unit, thousands};
use crate::etcd::WatchResponse;
use crate::timing::{Operation, drive};

/// Numbers of concurrent writes: with one the latency of fan-out is measured, with more its throughput.
const UNDER_WAY: [(usize, &str); 2] = [(1, "one write at a time"), (16, "16 writes at a time")];
/// Deadline for all watchers to see a write.
const SEEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Number of watches that are started concurrently.
const STARTING: usize = 64;

/// Writes that not all watchers have seen yet.
#[derive(Default)]
struct PendingWrites {
    writes: Mutex<HashMap<u64, Write>>,
}

struct Write {
    watchers: usize,
    seen: Option<oneshot::Sender<()>>,
}

impl PendingWrites {
    fn expect(&self, number: u64, watchers: usize) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        writes.insert(number, Write { watchers, seen: Some(sender) });
        receiver
    }

    /// Records that a watcher has seen a write; `false` when nobody waits for that write.
    fn seen(&self, number: u64) -> bool {
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(write) = writes.get_mut(&number) else { return false };
        write.watchers -= 1;
        if write.watchers == 0 {
            let sender = writes.remove(&number).and_then(|mut write| write.seen.take());
            // The receiver is gone when the writer has given up.
            sender.map(|sender| sender.send(()));
        }
        true
    }
}

/// Measures fan-out with `setup.watchers` watchers.
pub async fn measure(group: &Group, setup: &Setup) -> Result<Vec<Line>> {
    let unseen = Arc::new(PendingWrites::default());
    let mut watchers = start(group, setup, &unseen).await?;
    let lines = lines(group, setup, &unseen);
    tokio::select! {
        lines = lines => lines,
        ended = watchers.join_next() => match ended.context("no watcher")?? {
            Ok(()) => bail!("a watch ended"),
            Err(error) => Err(error.context("a watch ended")),
        },
    }
}

async fn start(group: &Group, setup: &Setup, unseen: &Arc<PendingWrites>) -> Result<JoinSet<Result<()>>> {
    let prefix = format!("{PREFIX}/watch/");
    let mut starting = FuturesUnordered::new();
    let mut watchers = JoinSet::new();
    for number in 0..setup.watchers {
        let client = &group.clients()[number % group.clients().len()];
        starting.push(client.watch(&prefix));
        if starting.len() == STARTING {
            let stream = starting.next().await.context("no watch")??;
            watchers.spawn(watcher(stream, unseen.clone()));
        }
    }
    while let Some(stream) = starting.next().await {
        watchers.spawn(watcher(stream?, unseen.clone()));
    }
    Ok(watchers)
}

async fn watcher(mut stream: Streaming<WatchResponse>, unseen: Arc<PendingWrites>) -> Result<()> {
    // A watch could start after a write that was acknowledged before it, so the first write
    // is sent only when all watches have started.
    while let Some(response) = stream.message().await? {
        if response.canceled {
            bail!("the server ended it: {}", response.cancel_reason);
        }
        for event in response.events {
            let number = Values::number(&event.kv.context("an event without an object")?.value)?;
            if !unseen.seen(number) {
                bail!("write {number} was delivered once too often, or too late");
            }
        }
    }
    Ok(())
}

async fn lines(group: &Group, setup: &Setup, unseen: &Arc<PendingWrites>) -> Result<Vec<Line>> {
    let values = Values::new(setup.value_bytes);
    let numbers = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let watchers = setup.watchers;
    let mut lines = Vec::new();
    for (under_way, name) in UNDER_WAY {
        let spent = ProcessorTime::start(group)?;
        let figures = drive(under_way, setup.span, |writer| -> Operation {
            let client = group.clients()[writer % group.clients().len()].clone();
            let (values, numbers, unseen) = (values.clone(), numbers.clone(), unseen.clone());
            Box::new(move |_| {
                let number = numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let (client, value) = (client.clone(), values.numbered(number));
                let seen = unseen.expect(number, watchers);
                let key = format!("{PREFIX}/watch/{writer}");
                async move {
                    let seen = async {
                        let seen = tokio::time::timeout(SEEN_TIMEOUT, seen).await;
                        seen.context("not all watchers saw a write in time")?.context("a watch ended")
                    };
                    tokio::try_join!(client.put(key, value), seen).map(drop)
                }
                .boxed()
            })
        })
        .await?;
        let spent = spent.end(group)?;
        let what = format!("{} watchers, {name}", thousands(watchers as f64));
        println!("{:<5} {what:<44} {figures}   {spent}", group.side.name());
        let watched = watchers as f64;
        let mut of_line = vec![
            Figure::new(" events/s", figures.rate * watched, Unit::PerSecond),
            Figure::time("last saw it p50", figures.p50),
            Figure::time("p99", figures.p99),
            Figure::new(
                "CPU/event",
                spent.members.as_secs_f64() / (figures.count as f64 * watched),
                Unit::Seconds,
            ),
        ];
        if figures.failed > 0 {
            of_line.push(Figure::new("failed", figures.failed as f64, Unit::Count));
        }
        lines.push(Line { what, figures: of_line, targets: vec![] });
    }
    Ok(lines)
}
