//! Compares implementations of the Raft log: Ephor's own, the raft-log crate and
//! sled made durable by `storage::durable`. Each appends entries of 1 KiB and
//! waits until they are durable, one at a time and 64 at a time.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use proto_env::{SystemDisk, SystemRandom};
use raft_log::api::raft_log_writer::RaftLogWriter;
use storage::log::Log;
use storage::{DataKey, Sealer};

use crate::timing::{Figures, figures, report};

const ENTRY_BYTES: usize = 1024;
/// Numbers of appends in flight.
const DEPTHS: [usize; 2] = [1, 64];

type Answer = std::io::Result<()>;

/// Measures all implementations and prints the report.
pub fn run(directory: &Path, span: Duration) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("ephor-bench-").tempdir_in(directory)?;
    for depth in DEPTHS {
        let what = format!("append, {depth} under way");
        let at = |name: &str| directory.path().join(format!("{name}-{depth}"));
        report(&what, &[("storage::log", own(&at("own"), depth, span)?)]);
        report(&what, &[("raft-log, 0 wait", raft_log(&at("raft-log"), depth, span, Duration::ZERO)?)]);
        let wait = Duration::from_millis(1);
        report(&what, &[("raft-log, default", raft_log(&at("raft-log-1"), depth, span, wait)?)]);
        report(&what, &[("sled + durable", sled_durable(&at("sled"), depth, span)?)]);
    }
    Ok(())
}

/// Keeps `depth` appends in flight; `append` starts one, and its result comes
/// over the channel, in order.
fn measure(depth: usize, span: Duration, mut append: impl FnMut(u64, SyncSender<Answer>)) -> Result<Figures> {
    let mut waiting: std::collections::VecDeque<(Instant, Receiver<Answer>)> = Default::default();
    let mut times = Vec::new();
    let start = Instant::now();
    let mut index = 0;
    while start.elapsed() < span || !waiting.is_empty() {
        while start.elapsed() < span && waiting.len() < depth {
            let (sender, receiver) = sync_channel(1);
            index += 1;
            waiting.push_back((Instant::now(), receiver));
            append(index, sender);
        }
        if let Some((begin, receiver)) = waiting.pop_front() {
            receiver.recv().context("no answer")??;
            times.push(begin.elapsed());
        }
    }
    Ok(figures(times, start.elapsed()))
}

fn own(directory: &Path, depth: usize, span: Duration) -> Result<Figures> {
    let sealer = Sealer::new(&DataKey::new([1; 32]), "log", Arc::new(SystemRandom));
    let log = Log::open(directory, sealer, Arc::new(SystemDisk), Default::default())?;
    let payload = Bytes::from(vec![7; ENTRY_BYTES]);
    measure(depth, span, |index, answer| {
        let done = Box::new(move |result| drop(answer.send(result)));
        log.append(vec![(index, payload.clone())], done);
    })
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Types;

impl raft_log::Types for Types {
    type LogId = (u64, u64);
    type LogPayload = Vec<u8>;
    type Vote = (u64, u64);
    type Callback = SyncSender<Answer>;
    type UserData = String;

    fn log_index(log_id: &(u64, u64)) -> u64 {
        log_id.1
    }

    fn payload_size(payload: &Vec<u8>) -> u64 {
        payload.len() as u64
    }
}

fn raft_log(directory: &Path, depth: usize, span: Duration, wait: Duration) -> Result<Figures> {
    std::fs::create_dir_all(directory)?;
    let mut config = raft_log::Config::new(directory.display());
    config.wal.flush_batch_wait = Some(wait);
    let mut log = raft_log::RaftLog::<Types>::open(Arc::new(config))?;
    let payload = vec![7; ENTRY_BYTES];
    let mut failed = None;
    let figures = measure(depth, span, |index, answer| {
        let written = log.append([((1, index), payload.clone())]).map(|_| ());
        if let Err(error) = written.and_then(|()| log.flush(true, Some(answer))) {
            failed = Some(error);
        }
    });
    failed.map_or(figures, |error| Err(error.into()))
}

fn sled_durable(directory: &Path, depth: usize, span: Duration) -> Result<Figures> {
    let database = sled::Config::new().path(directory).flush_every_ms(None).open()?;
    let mut times = Vec::new();
    let start = Instant::now();
    let mut index: u64 = 0;
    while start.elapsed() < span {
        let begin = Instant::now();
        for _ in 0..depth {
            index += 1;
            database.insert(index.to_be_bytes(), vec![7; ENTRY_BYTES])?;
        }
        storage::durable(&SystemDisk, &database, directory)?;
        times.extend(std::iter::repeat_n(begin.elapsed(), depth));
    }
    Ok(figures(times, start.elapsed()))
}
