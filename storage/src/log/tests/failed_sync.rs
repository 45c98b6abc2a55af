//! The log on a disk that treats a failed sync as Linux does: the pages count as clean, reads return them,
//! and later syncs succeed without writing them. And the log on a disk whose code panics.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use proto_env::{AppendFile, Disk, SystemDisk, SystemRandom};

use super::super::{Log, Options};
use super::{append, entry, indexes};
use crate::crypto::{DataKey, Sealer};

#[derive(Default)]
struct Kernel {
    fails: AtomicBool,
    panics: AtomicBool,
    /// Ranges of files that were never written to the disk and that no sync will write.
    dropped: Mutex<BTreeMap<PathBuf, Vec<Range<usize>>>>,
}

#[derive(Clone, Default)]
struct Forgetful(Arc<Kernel>);

struct Opened {
    kernel: Arc<Kernel>,
    path: PathBuf,
    inner: Box<dyn AppendFile>,
    synced: u64,
}

impl AppendFile for Opened {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        assert!(!self.kernel.panics.load(Ordering::Relaxed), "the disk's code panics");
        self.inner.append(bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        let dirty = self.synced as usize..self.inner.len() as usize;
        self.synced = self.inner.len();
        if self.kernel.fails.load(Ordering::Relaxed) {
            self.kernel.dropped.lock().unwrap().entry(self.path.clone()).or_default().push(dirty);
            return Err(io::Error::other("EIO"));
        }
        Ok(())
    }
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.inner.truncate(length)
    }
}

impl Forgetful {
    fn power_cut(&self) {
        let dropped = std::mem::take(&mut *self.0.dropped.lock().unwrap());
        for (path, ranges) in dropped {
            let mut bytes = std::fs::read(&path).unwrap();
            ranges.into_iter().for_each(|range| bytes[range].fill(0));
            std::fs::write(&path, bytes).unwrap();
        }
    }
}

impl Disk for Forgetful {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        SystemDisk.create_dir_all(path)
    }
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let inner = SystemDisk.open_append(path)?;
        let synced = inner.len();
        Ok(Box::new(Opened { kernel: self.0.clone(), path: path.to_owned(), inner, synced }))
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        SystemDisk.read(path)
    }
    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        SystemDisk.read_at(path, offset, length)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        SystemDisk.list(path)
    }
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        SystemDisk.replace(path, bytes)?;
        // A new file has no dropped pages.
        self.0.dropped.lock().unwrap().remove(path);
        Ok(())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove_dir_all(path)
    }
    fn sync_tree(&self, path: &Path) -> io::Result<()> {
        SystemDisk.sync_tree(path)
    }
}

#[test]
fn what_a_restart_reads_after_a_failed_sync_outlives_a_power_cut() {
    let (directory, key, disk) =
        (tempfile::tempdir().unwrap(), DataKey::generate(&SystemRandom), Forgetful::default());
    let open = || {
        let sealer = Sealer::new(&key, "log", Arc::new(SystemRandom));
        let options = Options { segment_bytes: 1 << 20, inline: false };
        Log::open(directory.path(), sealer, Arc::new(disk.clone()), options).unwrap()
    };
    let log = open();
    append(&log, 1..=3);
    disk.0.fails.store(true, Ordering::Relaxed);
    let (sender, receiver) = mpsc::channel();
    log.append(vec![entry(4)], Box::new(move |result| sender.send(result).unwrap()));
    assert!(receiver.recv().unwrap().is_err());
    drop(log);
    // The disk works again, and the process restarts with what the page cache shows. Whatever the log
    // returns now must still be there after a power cut.
    disk.0.fails.store(false, Ordering::Relaxed);
    let log = open();
    assert_eq!(indexes(&log), vec![1, 2, 3, 4]);
    append(&log, 5..=6);
    drop(log);
    disk.power_cut();
    assert_eq!(indexes(&open()), vec![1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_panic_while_writing_fails_every_write_instead_of_answering_none() {
    let (directory, key, disk) =
        (tempfile::tempdir().unwrap(), DataKey::generate(&SystemRandom), Forgetful::default());
    let sealer = Sealer::new(&key, "log", Arc::new(SystemRandom));
    let log = Log::open(directory.path(), sealer, Arc::new(disk.clone()), Options::default()).unwrap();
    append(&log, 1..=3);
    disk.0.panics.store(true, Ordering::Relaxed);
    for index in 4..=5 {
        let (sender, receiver) = mpsc::channel();
        log.append(vec![entry(index)], Box::new(move |result| sender.send(result).unwrap()));
        let result = receiver.recv().expect("the write was answered");
        assert!(result.unwrap_err().to_string().contains("the disk's code panics"));
    }
}
