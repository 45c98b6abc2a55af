//! The only writer of the log: takes all waiting jobs, writes their records, syncs once, and calls each
//! job's callback.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use proto_env::planted::{self, Bug};
use proto_env::supervise::catch_call;
use proto_env::{AppendFile, Disk};

use super::record::{self, HEADER_BYTES, Record};
use super::{Done, Index, Location, segment_path};
use crate::crypto::Sealer;
use crate::store::lock;
use crate::{Result, io as io_error};

/// Maximum number and bytes of jobs taken at once; one sync covers them all.
const BATCH_JOBS: usize = 512;
const BATCH_BYTES: usize = 16 * 1024 * 1024;

/// Records that are written together, with one callback.
pub(super) struct Job {
    /// The records with the stamps of their entries; 0 for other records.
    pub records: Vec<(Record, u64)>,
    pub sync: bool,
    pub done: Done,
}

/// The end of the log as recovery found it.
pub(super) struct Tail {
    /// The segments, each with the greatest entry index in it; the last one is current.
    pub segments: BTreeMap<u64, u64>,
    /// The sequence number of the next record.
    pub sequence: u64,
}

pub(super) struct Writer {
    directory: PathBuf,
    sealer: Arc<Sealer>,
    disk: Arc<dyn Disk>,
    index: Arc<Mutex<Index>>,
    segment_bytes: u64,
    segments: BTreeMap<u64, u64>,
    file: Box<dyn AppendFile>,
    segment: u64,
    sequence: u64,
    synced: u64,
    /// The state given by the records written so far, for the heads of new segments.
    head: Head,
    failed: Option<String>,
    /// Planted: an append that waits for the next two, and whether the first of them was written; always
    /// `None` without the bug.
    overtaken: Option<Box<(Job, bool)>>,
}

#[derive(Default)]
struct Head {
    vote: Option<Vec<u8>>,
    committed: Option<Vec<u8>>,
    purged: Option<(u64, Vec<u8>)>,
}

// === impl Job ===

impl Job {
    pub(super) fn one(record: Record, sync: bool, done: Done) -> Self {
        Self { records: vec![(record, 0)], sync, done }
    }

    fn size_bytes(&self) -> usize {
        let size = |record: &Record| match record {
            Record::Entry { payload, .. } => payload.len() + 100,
            _ => 200,
        };
        self.records.iter().map(|(record, _)| size(record)).sum()
    }
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(
        directory: PathBuf,
        sealer: Arc<Sealer>,
        disk: Arc<dyn Disk>,
        index: Arc<Mutex<Index>>,
        segment_bytes: u64,
        tail: Tail,
    ) -> Result<Self> {
        let segment = tail.segments.last_key_value().map_or(1, |(segment, _)| *segment);
        let file = disk
            .open_append(&segment_path(&directory, segment))
            .map_err(io_error("opening a log segment"))?;
        let head = {
            let state = &lock(&index).state;
            let (vote, committed) = (state.vote.clone(), state.committed.clone());
            Head { vote, committed, purged: state.purged.clone() }
        };
        let mut segments = tail.segments;
        segments.entry(segment).or_insert(0);
        let sequence = tail.sequence;
        let mut writer = Self {
            directory,
            sealer,
            disk,
            index,
            segment_bytes,
            segments,
            file,
            segment,
            sequence,
            synced: 0,
            head,
            failed: None,
            overtaken: None,
        };
        if writer.file.is_empty() {
            writer.write_head()?;
        }
        // Syncs the head written above and the data that recovery left unsynced.
        writer.sync()?;
        Ok(writer)
    }

    /// Serves jobs until all senders are dropped.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut bytes = first.size_bytes();
            let mut batch = vec![first];
            while batch.len() < BATCH_JOBS && bytes < BATCH_BYTES {
                let Ok(job) = jobs.try_recv() else { break };
                bytes += job.size_bytes();
                batch.push(job);
            }
            self.write(batch);
        }
        self.end();
    }

    /// Writes a final record when the log is closed. It says that all earlier records were synced, so that
    /// damage to them can be told apart from a tail that was never synced.
    pub(super) fn end(&mut self) {
        let committed = lock(&self.index).take_committed();
        if committed.is_some() {
            self.head.committed = committed;
        }
        if self.failed.is_none()
            && let Err(error) = self.sync().and_then(|()| self.write_head()).and_then(|()| self.sync())
        {
            tracing::error!(%error, "the last sync of the log failed");
        }
    }

    /// Writes the jobs and reports the result to each.
    pub(super) fn write(&mut self, batch: Vec<Job>) {
        let batch = if planted::is(Bug::AppendOutOfOrder) { self.reorder(batch) } else { batch };
        if self.failed.is_none() {
            // Every job gets its result, after a panic too: a leader waits for them without a time limit.
            let written = catch_call("log writer", || self.write_batch(&batch));
            let failed = match written {
                Ok(written) => written.err().map(|error| error.to_string()),
                Err(panicked) => Some(panicked.to_string()),
            };
            if let Some(error) = failed {
                tracing::error!(error, "writing the log failed; this node must stop");
                self.failed = Some(error);
            }
        }
        lock(&self.index).shrink();
        for job in batch {
            let result = match &self.failed {
                None => Ok(()),
                Some(reason) => Err(io::Error::other(reason.clone())),
            };
            (job.done)(result);
        }
    }

    /// Planted: holds every eighth append back until the next two are written, whose acknowledgements cover
    /// it; not while the cluster boots, when the next one may never come.
    fn reorder(&mut self, batch: Vec<Job>) -> Vec<Job> {
        let mut reordered = Vec::new();
        for job in batch {
            let index = match job.records.last() {
                Some((Record::Entry { index, .. }, _)) => Some(*index),
                _ => None,
            };
            match (self.overtaken.take().map(|overtaken| *overtaken), index) {
                (None, Some(index)) if index > 200 && index.is_multiple_of(8) => {
                    self.overtaken = Some(Box::new((job, false)))
                }
                (Some((held, false)), Some(_)) => {
                    self.overtaken = Some(Box::new((held, true)));
                    reordered.push(job);
                }
                (Some((held, true)), Some(_)) => reordered.extend([job, held]),
                (held, _) => reordered.extend(held.map(|(held, _)| held).into_iter().chain([job])),
            }
        }
        reordered
    }

    fn write_batch(&mut self, batch: &[Job]) -> Result<()> {
        if self.file.len() >= self.segment_bytes {
            self.roll()?;
        }
        let mut bytes = Vec::new();
        let mut placed = Vec::new();
        for (record, stamp) in batch.iter().flat_map(|job| &job.records) {
            let start = bytes.len();
            record::seal(&self.sealer, record, self.sequence, self.synced, &mut bytes)?;
            self.sequence += 1;
            self.remember(record);
            if let Record::Entry { index, .. } = record {
                let offset = self.file.len() + start as u64;
                let len = bytes.len() - start - HEADER_BYTES;
                placed.push((*index, *stamp, Location { segment: self.segment, offset, len }));
            }
        }
        self.file.append(&bytes).map_err(io_error("writing the log"))?;
        {
            let mut known = lock(&self.index);
            known.disk_bytes += bytes.len() as u64;
            for (index, stamp, at) in placed {
                if let Some(slot) = known.slots.get_mut(&index).filter(|slot| slot.stamp == stamp) {
                    slot.at = Some(at);
                }
            }
        }
        if batch.iter().any(|job| job.sync) {
            self.sync()?;
        }
        if batch.iter().flat_map(|job| &job.records).any(|(record, _)| matches!(record, Record::Purge { .. }))
        {
            self.remove_purged()?;
        }
        Ok(())
    }

    fn remember(&mut self, record: &Record) {
        match record {
            Record::Entry { index, .. } => {
                let greatest = self.segments.entry(self.segment).or_insert(0);
                *greatest = (*greatest).max(*index);
            }
            Record::Purge { index, id } => self.head.purged = Some((*index, id.clone())),
            Record::Vote(vote) => self.head.vote = Some(vote.clone()),
            Record::Committed(committed) => self.head.committed = Some(committed.clone()),
            Record::TruncateAfter(_) | Record::Head { .. } => {}
        }
    }

    fn sync(&mut self) -> Result<()> {
        let synced = self.file.sync();
        // Planted: a sync that failed counts as done.
        if !planted::is(Bug::SyncErrorIgnored) {
            synced.map_err(io_error("syncing the log"))?;
        }
        self.synced = self.sequence;
        Ok(())
    }

    /// Closes the current segment and begins the next one.
    fn roll(&mut self) -> Result<()> {
        self.sync()?;
        self.segment += 1;
        self.file = self
            .disk
            .open_append(&segment_path(&self.directory, self.segment))
            .map_err(io_error("making a log segment"))?;
        self.segments.insert(self.segment, 0);
        self.write_head()
    }

    fn write_head(&mut self) -> Result<()> {
        let head = Record::Head {
            vote: self.head.vote.clone(),
            committed: self.head.committed.clone(),
            purged: self.head.purged.clone(),
        };
        let mut bytes = Vec::new();
        record::seal(&self.sealer, &head, self.sequence, self.synced, &mut bytes)?;
        self.sequence += 1;
        self.file.append(&bytes).map_err(io_error("writing the log"))?;
        lock(&self.index).disk_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Removes the oldest segments that hold only purged entries. The purge is synced, so they are not
    /// needed any more.
    fn remove_purged(&mut self) -> Result<()> {
        let purged = self.head.purged.as_ref().map_or(0, |(index, _)| *index);
        // A half-full segment is closed too, so that even an idle cluster's one large segment can be
        // removed.
        if self.file.len() >= self.segment_bytes / 2 {
            self.roll()?;
            self.sync()?;
        }
        while let Some((&segment, &greatest)) = self.segments.first_key_value() {
            if segment == self.segment || greatest > purged {
                break;
            }
            let path = segment_path(&self.directory, segment);
            let file = self.disk.open_append(&path).map_err(io_error("removing a log segment"))?;
            let len = file.len();
            self.disk.remove(&path).map_err(io_error("removing a log segment"))?;
            self.segments.remove(&segment);
            let mut known = lock(&self.index);
            known.disk_bytes = known.disk_bytes.saturating_sub(len);
        }
        Ok(())
    }
}
