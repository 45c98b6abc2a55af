//! Simulated disk of one machine: files in memory that record which bytes were synced. A killed process loses
//! nothing (the page cache survives it). A power loss takes away what was not synced, except a part of the
//! tail that may have reached the platter, torn. The disk can also be made to fail.
//!
//! After a failed sync the disk behaves like Linux (Rebello et al., "Can Applications Recover from fsync
//! Failures?", ATC 2020, for ext4 and XFS): the pages count as clean, so reads still show them and a later
//! sync succeeds without writing them. They are on no platter, and a power loss leaves zeros in their place.
//!
//! "All File Systems Are Not Created Equal" (Pillai et al., OSDI 2014) is the model for what a crash may
//! leave. As `proto_env::Disk` promises, changes of names are durable on return.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto_env::{AppendFile, Disk};
use rand::RngCore;
use rand::rngs::StdRng;

/// Path used for syncs of temporary files; no file is ever stored under it.
const UNNAMED: &str = "/-";

/// Kind of damage to a file at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// One bit of one file is flipped.
    Flip,
    /// The end of one file is cut off.
    Cut,
}

/// Way in which a disk fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Syncs fail with EIO.
    SyncFails,
    /// Writes fail with ENOSPC.
    Full,
}

#[derive(Default)]
struct File {
    bytes: Vec<u8>,
    /// Number of leading `bytes` that count as clean: synced, or given up after a failed sync.
    synced: usize,
    /// Ranges of clean bytes that are only in the page cache, since their sync failed.
    dropped: Vec<Range<usize>>,
}

impl File {
    fn durable(bytes: Vec<u8>) -> Self {
        Self { synced: bytes.len(), bytes, dropped: Vec::new() }
    }

    fn sync(&mut self) {
        self.synced = self.bytes.len();
    }

    /// Applies a failed sync: dirty bytes count as clean and will not be written.
    fn sync_fails(&mut self) {
        if self.synced < self.bytes.len() {
            self.dropped.push(self.synced..self.bytes.len());
        }
        self.synced = self.bytes.len();
    }

    fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
        self.synced = self.synced.min(length);
        self.dropped.retain_mut(|range| {
            range.end = range.end.min(length);
            range.start < range.end
        });
    }
}

#[derive(Default)]
struct State {
    files: BTreeMap<PathBuf, File>,
    directories: BTreeSet<PathBuf>,
    failure: Option<Failure>,
    /// Number of calls that failed because of `failure`.
    failed: u64,
    syncs: u64,
    /// Duration of each sync; zero for none.
    slow: Duration,
}

/// A simulated disk; clones share the data.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

struct OpenFile {
    disk: SimDisk,
    path: PathBuf,
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

impl State {
    fn file(&mut self, path: &Path) -> io::Result<&mut File> {
        self.files.get_mut(path).ok_or_else(|| not_found(path))
    }

    fn may_write(&mut self) -> io::Result<()> {
        if self.failure == Some(Failure::Full) {
            self.failed += 1;
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }

    /// Counts a sync of the files below `path`; if it fails, their dirty bytes are given up.
    fn may_sync(&mut self, path: &Path) -> io::Result<()> {
        self.syncs += 1;
        if self.failure == Some(Failure::SyncFails) {
            self.failed += 1;
            let files = self.files.iter_mut().filter(|(file, _)| file.starts_with(path));
            files.for_each(|(_, file)| file.sync_fails());
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }
}

impl SimDisk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how the disk fails; `None` ends the failure.
    pub fn set_failure(&self, failure: Option<Failure>) {
        self.lock().failure = failure;
    }

    /// Returns the number of calls that failed because of [`SimDisk::set_failure`].
    pub fn failed(&self) -> u64 {
        self.lock().failed
    }

    /// Sets the duration of each sync.
    pub fn set_slow(&self, slow: Duration) {
        self.lock().slow = slow;
    }

    /// Returns the number of syncs.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Damages a random file below `directory`; returns its path and the position, or `None` if no file is
    /// there.
    pub fn damage(&self, directory: &Path, damage: Damage, random: &mut StdRng) -> Option<(PathBuf, usize)> {
        let mut state = self.lock();
        let files = state
            .files
            .iter_mut()
            .filter(|(path, file)| path.starts_with(directory) && !file.bytes.is_empty());
        let mut files: Vec<_> = files.collect();
        let count = u64::try_from(files.len()).ok().filter(|count| *count > 0)?;
        let (path, file) = &mut files[usize::try_from(random.next_u64() % count).ok()?];
        let at = usize::try_from(random.next_u64() % file.bytes.len() as u64).ok()?;
        match damage {
            Damage::Flip => file.bytes[at] ^= 1 << (random.next_u32() % 8),
            Damage::Cut => file.truncate(at),
        }
        Some((path.clone(), at))
    }

    /// Simulates a loss of power: each file keeps what was synced and a random part of the rest, whose last
    /// bytes may be wrong; where a sync failed there are zeros. Returns the number of bytes lost.
    pub fn power_loss(&self, random: &mut StdRng) -> u64 {
        let mut lost = 0;
        for file in self.lock().files.values_mut() {
            for range in std::mem::take(&mut file.dropped) {
                lost += range.len() as u64;
                file.bytes[range].fill(0);
            }
            let loose = file.bytes.len() - file.synced;
            if loose == 0 {
                continue;
            }
            let kept = usize::try_from(random.next_u64()).unwrap_or(0) % (loose + 1);
            file.bytes.truncate(file.synced + kept);
            let torn = kept.min(usize::from(random.next_u32().is_multiple_of(2)) * 64);
            let from = file.bytes.len() - torn;
            random.fill_bytes(&mut file.bytes[from..]);
            file.synced = file.bytes.len();
            lost += (loose - kept) as u64;
        }
        lost
    }
}

impl AppendFile for OpenFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.may_write()?;
        state.file(&self.path)?.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.may_sync(&self.path)?;
        state.file(&self.path)?.sync();
        Ok(())
    }

    fn len(&self) -> u64 {
        self.disk.lock().files.get(&self.path).map_or(0, |file| file.bytes.len() as u64)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.file(&self.path)?.truncate(usize::try_from(length).map_err(io::Error::other)?);
        state.may_sync(&self.path)?;
        state.file(&self.path)?.sync();
        Ok(())
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if state.directories.contains(path) {
            return Ok(());
        }
        state.may_write()?;
        state.directories.extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let mut state = self.lock();
        if !state.files.contains_key(path) {
            state.may_write()?;
            state.files.insert(path.to_owned(), File::default());
        }
        Ok(Box::new(OpenFile { disk: self.clone(), path: path.to_owned() }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        Ok(self.lock().file(path)?.bytes.clone())
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut state = self.lock();
        let bytes = &state.file(path)?.bytes;
        let from = usize::try_from(offset).map_err(io::Error::other)?.min(bytes.len());
        Ok(bytes[from..(from + length).min(bytes.len())].to_vec())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        if !state.directories.contains(path) {
            return Err(not_found(path));
        }
        let entries = state.files.keys().chain(&state.directories);
        let within = entries.filter(|entry| entry.parent() == Some(path));
        let names = within.filter_map(|entry| Some(entry.file_name()?.to_string_lossy().into_owned()));
        Ok(names.collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        state.may_write()?;
        // A failed sync concerns the temporary file, which nobody reads.
        state.may_sync(Path::new(UNNAMED))?;
        state.files.insert(path.to_owned(), File::durable(bytes.to_vec()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.lock().files.remove(path).map(drop).ok_or_else(|| not_found(path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.files.retain(|file, _| !file.starts_with(path));
        state.directories.retain(|directory| !directory.starts_with(path));
        Ok(())
    }

    fn sync_time(&self) -> Duration {
        self.lock().slow
    }

    fn sync_tree(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.may_sync(path)?;
        state.files.iter_mut().filter(|(file, _)| file.starts_with(path)).for_each(|(_, file)| file.sync());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seams::random::generator;

    fn file(disk: &SimDisk) -> Box<dyn AppendFile> {
        disk.create_dir_all(Path::new("/d")).unwrap();
        disk.open_append(Path::new("/d/log")).unwrap()
    }

    #[test]
    fn what_was_synced_outlives_a_power_loss_and_the_rest_is_cut_somewhere() {
        let mut lengths = BTreeSet::new();
        for seed in 0..50 {
            let disk = SimDisk::default();
            let mut log = file(&disk);
            log.append(b"safe").unwrap();
            log.sync().unwrap();
            log.append(&[b'x'; 100]).unwrap();
            disk.power_loss(&mut generator(seed, 0));
            let bytes = disk.read(Path::new("/d/log")).unwrap();
            assert!(bytes.starts_with(b"safe"));
            lengths.insert(bytes.len());
        }
        assert!(lengths.len() > 10, "{lengths:?}");
    }

    #[test]
    fn a_failing_disk_says_so_and_counts_it() {
        let disk = SimDisk::default();
        let mut log = file(&disk);
        disk.set_failure(Some(Failure::Full));
        assert_eq!(log.append(b"x").unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        disk.set_failure(Some(Failure::SyncFails));
        log.append(b"x").unwrap();
        assert_eq!(log.sync().unwrap_err().raw_os_error(), Some(libc::EIO));
        disk.set_failure(None);
        log.sync().unwrap();
        assert_eq!(disk.failed(), 2);
    }

    #[test]
    fn what_a_failed_sync_gave_up_no_later_one_saves() {
        let disk = SimDisk::default();
        let mut log = file(&disk);
        log.append(b"safe").unwrap();
        log.sync().unwrap();
        disk.set_failure(Some(Failure::SyncFails));
        log.append(b"gone").unwrap();
        assert!(log.sync().is_err());
        disk.set_failure(None);
        log.append(b"later").unwrap();
        log.sync().unwrap();
        // Reads come from the page cache, so they do not show that the sync failed.
        assert_eq!(disk.read(Path::new("/d/log")).unwrap(), b"safegonelater");
        assert_eq!(disk.power_loss(&mut generator(1, 0)), 4);
        assert_eq!(disk.read(Path::new("/d/log")).unwrap(), b"safe\0\0\0\0later");
    }

    #[test]
    fn what_is_written_anew_after_a_failed_sync_is_saved() {
        let disk = SimDisk::default();
        let mut log = file(&disk);
        disk.set_failure(Some(Failure::SyncFails));
        log.append(b"gone").unwrap();
        assert!(log.sync().is_err());
        assert!(disk.replace(Path::new("/d/log"), b"new").is_err());
        disk.set_failure(None);
        log.truncate(0).unwrap();
        log.append(b"again").unwrap();
        log.sync().unwrap();
        assert_eq!(disk.power_loss(&mut generator(1, 0)), 0);
        assert_eq!(disk.read(Path::new("/d/log")).unwrap(), b"again");
    }

    #[test]
    fn damage_is_one_bit_or_an_end() {
        let mut random = generator(1, 0);
        let disk = SimDisk::default();
        assert_eq!(disk.damage(Path::new("/d"), Damage::Flip, &mut random), None);
        let mut log = file(&disk);
        log.append(&[0; 100]).unwrap();
        let (path, at) = disk.damage(Path::new("/d"), Damage::Flip, &mut random).unwrap();
        let bytes = disk.read(&path).unwrap();
        assert_eq!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        assert_eq!(bytes[at].count_ones(), 1);
        let (_, at) = disk.damage(Path::new("/d"), Damage::Cut, &mut random).unwrap();
        assert_eq!(log.len(), at as u64);
    }

    #[test]
    fn directories_list_what_lies_in_them() {
        let disk = SimDisk::default();
        drop(file(&disk));
        disk.create_dir_all(Path::new("/d/e/f")).unwrap();
        assert_eq!(disk.list(Path::new("/d")).unwrap(), ["e", "log"]);
        assert_eq!(disk.list(Path::new("/x")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
