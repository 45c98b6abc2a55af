//! The guarantees of the log, on real files.

mod failed_sync;

use std::sync::mpsc;
use std::time::Duration;

use proto_env::{SystemDisk, SystemRandom};

use super::*;
use crate::crypto::DataKey;

struct Fixture {
    directory: tempfile::TempDir,
    key: DataKey,
    options: Options,
}

impl Fixture {
    fn new() -> Self {
        let options = Options { segment_bytes: 4096, inline: false };
        Self { directory: tempfile::tempdir().unwrap(), key: DataKey::generate(&SystemRandom), options }
    }

    fn open(&self) -> Result<Arc<Log>> {
        let sealer = Sealer::new(&self.key, "log", Arc::new(SystemRandom));
        Log::open(self.directory.path(), sealer, Arc::new(SystemDisk), self.options)
    }

    fn segments(&self) -> Vec<PathBuf> {
        let names = SystemDisk.list(self.directory.path()).unwrap();
        names.into_iter().map(|name| self.directory.path().join(name)).collect()
    }
}

/// Starts a write and waits until it is durable.
fn wait(write: impl FnOnce(Done)) {
    let (sender, receiver) = mpsc::channel();
    write(Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
}

fn entry(index: u64) -> (u64, Bytes) {
    (index, Bytes::from(format!("entry {index} {}", "x".repeat(200))))
}

fn append(log: &Log, range: std::ops::RangeInclusive<u64>) {
    range.for_each(|index| wait(|done| log.append(vec![entry(index)], done)));
}

fn indexes(log: &Log) -> Vec<u64> {
    log.read(0, u64::MAX, usize::MAX).unwrap().into_iter().map(|(index, _)| index).collect()
}

#[test]
fn entries_vote_and_state_survive_reopening() {
    let fixture = Fixture::new();
    let log = fixture.open().unwrap();
    append(&log, 1..=100);
    wait(|done| log.save_vote(b"vote".to_vec(), done));
    log.save_committed(b"committed".to_vec());
    wait(|done| log.truncate_after(Some(90), done));
    append(&log, 91..=95);
    let state = log.state();
    drop(log);
    let log = fixture.open().unwrap();
    assert_eq!(log.state(), state);
    assert_eq!(log.state().last, Some(95));
    assert_eq!(log.state().committed.as_deref(), Some(&b"committed"[..]));
    assert_eq!(indexes(&log), (1..=95).collect::<Vec<_>>());
    assert_eq!(log.read(95, 96, 1).unwrap(), vec![entry(95)]);
    assert!(fixture.segments().len() > 3);
}

#[test]
fn what_is_committed_is_kept_though_nothing_follows() {
    let fixture = Fixture::new();
    let log = fixture.open().unwrap();
    append(&log, 1..=3);
    log.save_committed(b"committed".to_vec());
    drop(log);
    assert_eq!(fixture.open().unwrap().state().committed.as_deref(), Some(&b"committed"[..]));
}

/// After a power cut the committed position must not name entries that do not exist.
#[test]
fn what_is_committed_comes_after_the_entries_it_is_about() {
    let mut fixture = Fixture::new();
    fixture.options.segment_bytes = 1 << 20;
    let log = fixture.open().unwrap();
    append(&log, 1..=1);
    log.save_committed(b"1".to_vec());
    append(&log, 2..=2);
    let path = fixture.segments().pop().unwrap();
    let whole = std::fs::read(&path).unwrap();
    drop(log);
    let mut committed = None;
    for length in 1..=whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let log = fixture.open().unwrap();
        let state = log.state();
        assert!(state.committed.is_none() || state.last >= Some(1), "{length}: {state:?}");
        committed = committed.max(state.committed);
    }
    assert_eq!(committed.as_deref(), Some(&b"1"[..]));
}

#[test]
fn purged_segments_are_removed_and_stay_so() {
    let fixture = Fixture::new();
    let log = fixture.open().unwrap();
    append(&log, 1..=100);
    let before = log.disk_bytes();
    wait(|done| log.purge(80, b"id80".to_vec(), done));
    assert!(log.disk_bytes() < before / 2, "{} of {before} bytes are left", log.disk_bytes());
    drop(log);
    let log = fixture.open().unwrap();
    assert_eq!(log.state().purged, Some((80, b"id80".to_vec())));
    assert_eq!(indexes(&log), (81..=100).collect::<Vec<_>>());
    // Purge beyond the last entry, as after an installed snapshot.
    wait(|done| log.purge(200, b"id200".to_vec(), done));
    append(&log, 201..=203);
    drop(log);
    assert_eq!(indexes(&fixture.open().unwrap()), vec![201, 202, 203]);
}

#[test]
fn a_read_is_bounded_in_bytes_but_gives_at_least_one() {
    let fixture = Fixture::new();
    let log = fixture.open().unwrap();
    append(&log, 1..=10);
    assert_eq!(log.read(1, 11, 1).unwrap().len(), 1);
    assert_eq!(log.read(1, 11, 700).unwrap().len(), 3);
    assert_eq!(log.read(11, 20, 700).unwrap().len(), 0);
}

#[test]
fn a_torn_tail_is_cut_off_at_every_byte() {
    let mut fixture = Fixture::new();
    fixture.options.segment_bytes = 1 << 20;
    let log = fixture.open().unwrap();
    append(&log, 1..=3);
    // Leaves the log open, as a power cut would.
    let path = fixture.segments().pop().unwrap();
    let whole = std::fs::read(&path).unwrap();
    drop(log);
    // The last record is about 280 bytes; tear it shorter and with zeros.
    for torn in 1..200 {
        let mut bytes = whole[..whole.len() - torn].to_vec();
        if torn % 2 == 0 {
            bytes.extend(std::iter::repeat_n(0, torn));
        }
        std::fs::write(&path, &bytes).unwrap();
        let log = fixture.open().unwrap();
        assert_eq!(indexes(&log), vec![1, 2], "torn by {torn}");
        append(&log, 3..=3);
        assert_eq!(indexes(&log), vec![1, 2, 3]);
    }
}

/// A log that was closed reads back as it was written, or not at all.
#[test]
fn no_flipped_byte_of_a_closed_log_makes_another_one() {
    let fixture = Fixture::new();
    let log = fixture.open().unwrap();
    append(&log, 1..=20);
    wait(|done| log.purge(12, b"id12".to_vec(), done));
    wait(|done| log.truncate_after(Some(19), done));
    append(&log, 20..=21);
    wait(|done| log.save_vote(b"vote".to_vec(), done));
    let (state, entries) = (log.state(), log.read(0, u64::MAX, usize::MAX).unwrap());
    drop(log);
    let kept: Vec<(PathBuf, Vec<u8>)> =
        fixture.segments().into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    let (mut refused, mut same) = (0, 0);
    for (path, whole) in &kept {
        for at in (0..whole.len()).step_by(5) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(path, &bytes).unwrap();
            match fixture.open() {
                Err(error) => {
                    assert_eq!(error.to_string().lines().count(), 1, "{error}");
                    refused += 1;
                }
                Ok(log) => {
                    assert_eq!(log.state(), state, "byte {at} of {}", path.display());
                    assert_eq!(log.read(0, u64::MAX, usize::MAX).unwrap(), entries);
                    same += 1;
                }
            }
            // Opening may have cut or added files.
            fixture.segments().iter().for_each(|path| std::fs::remove_file(path).unwrap());
            kept.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
        }
    }
    println!("{refused} refused, {same} opened as written");
    assert!(refused > 300 && same > 0);
}

#[test]
fn damage_to_what_was_synced_is_refused() {
    let mut fixture = Fixture::new();
    fixture.options.segment_bytes = 1 << 20;
    let log = fixture.open().unwrap();
    append(&log, 1..=5);
    drop(log);
    let path = fixture.segments().pop().unwrap();
    let whole = std::fs::read(&path).unwrap();
    for at in [100, 300, whole.len() / 2] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = fixture.open().err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("had been synced"), "byte {at}: {error}");
    }
}

#[test]
fn payloads_beyond_the_cache_come_from_disk() {
    let mut fixture = Fixture::new();
    fixture.options.segment_bytes = 16 << 20;
    let log = fixture.open().unwrap();
    let large = Bytes::from(vec![9; 3 << 20]);
    for index in 1..=12 {
        wait(|done| log.append(vec![(index, large.clone())], done));
    }
    assert!(lock(&log.index).cached_bytes <= CACHE_BYTES);
    assert!(lock(&log.index).slots[&1].payload.is_none());
    assert_eq!(log.read(1, 2, 1).unwrap(), vec![(1, large.clone())]);
    assert_eq!(log.read(12, 13, 1).unwrap(), vec![(12, large)]);
}

#[tokio::test(start_paused = true)]
async fn payloads_leave_memory_soon_after_a_load() {
    let fixture = Fixture::new();
    let log = fixture.open().unwrap();
    append(&log, 1..=50);
    let dropping = tokio::spawn(log.clone().drop_old_payloads());
    tokio::time::sleep(CACHE_AGE + Duration::from_secs(1)).await;
    append(&log, 51..=60);
    assert!(log.is_in_memory(1));
    tokio::time::sleep(CACHE_AGE).await;
    assert!(!log.is_in_memory(1) && !log.is_in_memory(50) && log.is_in_memory(51));
    tokio::time::sleep(CACHE_AGE).await;
    assert_eq!(lock(&log.index).cached_bytes, 0);
    assert_eq!(indexes(&log), (1..=60).collect::<Vec<_>>());
    assert_eq!(log.read(60, 61, 1).unwrap(), vec![entry(60)]);
    dropping.abort();
}

#[test]
fn writes_that_wait_share_a_sync_and_all_are_told() {
    let fixture = Fixture::new();
    let log = fixture.open().unwrap();
    let (sender, receiver) = mpsc::channel();
    for index in 1..=500 {
        let sender = sender.clone();
        log.append(vec![entry(index)], Box::new(move |result| sender.send((index, result)).unwrap()));
    }
    for index in 1..=500 {
        let (told, result) = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(told, index);
        result.unwrap();
    }
}
