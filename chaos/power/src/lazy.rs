//! The machine's disk with some syncs left out, as a bug might do.

use std::io;
use std::path::Path;
use std::sync::Arc;

use proto_env::{AppendFile, Disk, SystemDisk};

/// Syncs that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Without {
    /// The log's `fdatasync`.
    LogSync,
    /// The syncs of the object store's files before the log is purged.
    ObjectsSync,
}

struct LazyDisk(Without);

struct LazyFile(Box<dyn AppendFile>);

/// Returns the machine's disk, without the syncs of `without`.
pub fn disk(without: Option<Without>) -> Arc<dyn Disk> {
    match without {
        None => Arc::new(SystemDisk),
        Some(without) => Arc::new(LazyDisk(without)),
    }
}

impl Disk for LazyDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        SystemDisk.create_dir_all(path)
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let file = SystemDisk.open_append(path)?;
        Ok(if self.0 == Without::LogSync { Box::new(LazyFile(file)) } else { file })
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
        SystemDisk.replace(path, bytes)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove_dir_all(path)
    }

    fn sync_tree(&self, path: &Path) -> io::Result<()> {
        if self.0 == Without::ObjectsSync { Ok(()) } else { SystemDisk.sync_tree(path) }
    }
}

impl AppendFile for LazyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.0.truncate(length)
    }
}
