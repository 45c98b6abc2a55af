//! Files whose durability matters: log, identity, snapshots. A write is durable
//! only after `sync`; a created, renamed or removed name only after its
//! directory is synced, which the functions here that say so do themselves.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

/// A file that grows at its end.
pub trait AppendFile: Send + 'static {
    /// Writes all bytes at the end. Not durable yet.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything written durable (`fdatasync`).
    fn sync(&mut self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> u64;
    /// Whether nothing was written yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Cuts the file to `length` bytes and makes that durable.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
}

/// Room on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What this process may still write.
    pub free: u64,
    /// The size of the file system.
    pub total: u64,
}

/// The most that is kept free unless somebody says otherwise, in bytes.
const RESERVE_MAX: u64 = 256 * 1024 * 1024;
/// The part of a file system that is kept free, if that is less.
const RESERVE_PART: u64 = 20;

impl Space {
    /// What a master keeps free: `configured` bytes, or with 0 the lesser of
    /// 256 MiB and a twentieth of the file system.
    pub fn reserve(&self, configured: u64) -> u64 {
        if configured > 0 { configured } else { RESERVE_MAX.min(self.total / RESERVE_PART) }
    }

    /// Where a master stops before the disk does it: a quarter of the reserve.
    pub fn floor(&self, configured: u64) -> u64 {
        self.reserve(configured) / 4
    }
}

/// A file system. All calls block.
pub trait Disk: Send + Sync + 'static {
    /// Makes a directory and its parents, durably; others than the owner may not
    /// look into what is made.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Opens a file for appending; a new one is durable as a name on return.
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>>;
    /// The whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Up to `length` bytes from `offset`; fewer only at the end of the file.
    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// Names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Replaces a file's content, durably: a crash leaves the old or the new one.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Removes a file, durably.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all below, durably as to its own name.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// `fsync` of every file and directory at and below `path`.
    fn sync_tree(&self, path: &Path) -> io::Result<()>;
    /// How much room is left where `path` lies; `None` where that has no bound.
    fn space(&self, path: &Path) -> io::Result<Option<Space>> {
        let _ = path;
        Ok(None)
    }
    /// How long a sync that has just returned should have blocked: who cannot block,
    /// as in the simulation, waits for that long before the sync counts. A real disk
    /// blocks by itself.
    fn sync_time(&self) -> Duration {
        Duration::ZERO
    }
}

/// The machine's file system.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemDisk;

struct SystemFile {
    file: File,
    len: u64,
}

// === impl SystemFile ===

impl AppendFile for SystemFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        self.file.sync_all()?;
        self.len = length;
        Ok(())
    }
}

// === impl SystemDisk ===

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

impl Disk for SystemDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            self.create_dir_all(parent)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => sync_parent(path),
        }
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let existed = path.exists();
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        if !existed {
            file.sync_all()?;
            sync_parent(path)?;
        }
        let len = file.metadata()?.len();
        Ok(Box::new(SystemFile { file, len }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::with_capacity(length);
        file.take(length as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".new");
        let temporary = path.with_file_name(name);
        let mut file = private_file(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_parent(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)?;
        sync_parent(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)?;
        sync_parent(path)
    }

    fn sync_tree(&self, path: &Path) -> io::Result<()> {
        let metadata = match fs::symlink_metadata(path) {
            // A file that went away while the tree was walked needs no sync.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        if metadata.is_dir() {
            for entry in fs::read_dir(path)? {
                self.sync_tree(&entry?.path())?;
            }
            return sync_dir(path);
        }
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other?.sync_all(),
        }
    }

    fn space(&self, path: &Path) -> io::Result<Option<Space>> {
        let found = nix::sys::statvfs::statvfs(existing(path)).map_err(io::Error::from)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
        Ok(Some(Space { free: bytes(found.blocks_available()), total: bytes(found.blocks()) }))
    }
}

/// The nearest directory that exists: a data directory may not be made yet.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."))
}

/// A new empty file that its owner alone may read: keys go through here too.
fn private_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_appended_file_reads_back_after_a_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/log");
        SystemDisk.create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = SystemDisk.open_append(&path).unwrap();
        file.append(b"hello world").unwrap();
        file.sync().unwrap();
        file.truncate(5).unwrap();
        file.append(b"!").unwrap();
        assert_eq!(SystemDisk.read(&path).unwrap(), b"hello!");
        assert_eq!(SystemDisk.read_at(&path, 2, 100).unwrap(), b"llo!");
        assert_eq!(file.len(), 6);
        SystemDisk.sync_tree(dir.path()).unwrap();
    }

    #[test]
    fn the_reserve_is_a_part_of_small_disks_and_bounded_on_large_ones() {
        let mb = |free: u64, total: u64| Space { free: free << 20, total: total << 20 };
        assert_eq!(mb(0, 100).reserve(0), 5 << 20);
        assert_eq!(mb(0, 1 << 20).reserve(0), 256 << 20);
        assert_eq!(mb(0, 100).reserve(7), 7);
        let dir = tempfile::tempdir().unwrap();
        let found = SystemDisk.space(&dir.path().join("not/made/yet")).unwrap().unwrap();
        assert!(found.free <= found.total && found.total > 0, "{found:?}");
    }

    #[test]
    fn a_replaced_file_holds_the_new_content_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        SystemDisk.replace(&path, b"one").unwrap();
        SystemDisk.replace(&path, b"2").unwrap();
        assert_eq!(SystemDisk.read(&path).unwrap(), b"2");
        assert_eq!(SystemDisk.list(dir.path()).unwrap(), vec!["identity"]);
    }
}
