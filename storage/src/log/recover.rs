//! Recovery: reads the log back at start. After a power cut, records that were never synced may be torn or
//! missing, in any order, so the log ends before the first bad record. But each record says how many
//! earlier ones were synced; damage to a synced record, which may have been acknowledged, is detected and
//! refused.

use std::collections::BTreeMap;
use std::path::Path;

use proto_env::Disk;

use super::record::{self, HEADER_BYTES, Header, Record};
use super::writer::Tail;
use super::{CachedEntry, Index, Location, segment_path};
use crate::crypto::Sealer;
use crate::{Error, Result, io as io_error};

pub(super) struct Recovered {
    pub index: Index,
    pub tail: Tail,
    /// Sequence number up to which all records were synced, as later records declare.
    synced: u64,
}

pub(super) fn recover(directory: &Path, sealer: &Sealer, disk: &dyn Disk) -> Result<Recovered> {
    let tail = Tail { segments: BTreeMap::new(), sequence: 1 };
    let mut recovered = Recovered { index: Index::default(), tail, synced: 0 };
    let names = disk.list(directory).map_err(io_error("listing the log"))?;
    let numbers: Vec<u64> = names.iter().filter_map(|name| name.strip_prefix("log-")?.parse().ok()).collect();
    for (position, &segment) in numbers.iter().enumerate() {
        let path = segment_path(directory, segment);
        let bytes = disk.read(&path).map_err(io_error("reading the log"))?;
        let good = recovered.segment(sealer, segment, &bytes, position == 0)?;
        recovered.tail.segments.entry(segment).or_insert(0);
        recovered.index.disk_bytes += good as u64;
        recovered.index.shrink();
        let is_last = position + 1 == numbers.len();
        if good == bytes.len() {
            if is_last {
                rewrite(disk, &path, &bytes)?;
            }
            continue;
        }
        // A segment begins only after the previous one was synced, so only the last one may end early.
        let synced = synced_claim(sealer, &bytes[good..]);
        if !is_last || synced.is_some_and(|synced| synced > recovered.tail.sequence) {
            return Err(Error::Damaged {
                what: "log",
                reason: format!("segment {segment} is damaged at byte {good}, where it had been synced"),
            });
        }
        tracing::warn!(segment, at = good, bytes = bytes.len(), "cut off a tail that was never synced");
        rewrite(disk, &path, &bytes[..good])?;
    }
    Ok(recovered)
}

/// Returns the greatest synced sequence number declared by an intact record in `bytes`; `None` without one.
fn synced_claim(sealer: &Sealer, bytes: &[u8]) -> Option<u64> {
    (0..bytes.len().saturating_sub(HEADER_BYTES))
        .filter(|&at| Header::decode(&bytes[at..]).is_some())
        .filter_map(|at| record::open(sealer, &bytes[at..]).ok())
        .map(|(header, _)| header.synced)
        .max()
}

/// Rewrites the last segment. What was read from its end may be only in the page cache and never reach the
/// disk: after a failed sync the kernel marks the pages as clean, and the next sync succeeds without writing
/// them (Rebello et al., "Can Applications Recover from fsync Failures?"). That holds for the record written
/// when the log was closed, too, so there is no log that need not be rewritten.
fn rewrite(disk: &dyn Disk, path: &Path, good: &[u8]) -> Result<()> {
    match disk.replace(path, good) {
        // Without space for a second copy, the file is only cut to its length and synced by the writer.
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            tracing::warn!(path = %path.display(), "not enough free space to rewrite the last log segment");
            let mut file = disk.open_append(path).map_err(io_error("opening a log segment"))?;
            file.truncate(good.len() as u64).map_err(io_error("cutting a log segment"))
        }
        replaced => replaced.map_err(io_error("writing a log segment anew")),
    }
}

impl Recovered {
    /// Reads the records of a segment; returns the number of good bytes.
    fn segment(&mut self, sealer: &Sealer, segment: u64, bytes: &[u8], first: bool) -> Result<usize> {
        let mut at = 0;
        while at < bytes.len() {
            let Ok((header, record)) = record::open(sealer, &bytes[at..]) else { break };
            // The first remaining segment may begin at any sequence number.
            if at == 0 && first {
                self.tail.sequence = header.sequence;
            }
            if header.sequence != self.tail.sequence {
                break;
            }
            self.tail.sequence += 1;
            self.synced = self.synced.max(header.synced);
            let location = Location { segment, offset: at as u64, len: header.len };
            self.record(record, location);
            at += HEADER_BYTES + header.len;
        }
        Ok(at)
    }

    fn record(&mut self, record: Record, at: Location) {
        let index = &mut self.index;
        match record {
            Record::Entry { index: number, payload } => {
                index.truncate_after(number.checked_sub(1));
                let greatest = self.tail.segments.entry(at.segment).or_insert(0);
                *greatest = (*greatest).max(number);
                if index.state.purged.as_ref().is_none_or(|(purged, _)| number > *purged) {
                    let stamp = index.next_stamp();
                    index.insert(number, CachedEntry { payload: Some(payload), at: Some(at), stamp });
                    index.shrink();
                }
            }
            Record::TruncateAfter(last) => index.truncate_after(last),
            Record::Purge { index: number, id } => index.purge(number, id),
            Record::Vote(vote) => index.state.vote = Some(vote),
            Record::Committed(committed) => index.state.committed = Some(committed),
            Record::Head { vote, committed, purged } => {
                index.state.vote = vote;
                index.state.committed = committed;
                if let Some((number, id)) = purged {
                    index.purge(number, id);
                }
            }
        }
    }
}
