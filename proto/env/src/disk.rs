//! Files whose durability matters: log, identity, snapshots. A write is durable only after `sync`; a
//! created, renamed or removed name is durable only after its directory is synced, which the functions here
//! do where they promise it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

/// A file to which bytes are only appended.
pub trait AppendFile: Send + 'static {
    /// Appends all bytes. They are not durable yet.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything written durable (`fdatasync`).
    fn sync(&mut self) -> io::Result<()>;
    /// Returns the length in bytes.
    fn len(&self) -> u64;
    /// Returns whether the file is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Cuts the file to `length` bytes and makes that durable.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
}

/// The space of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this process may still write.
    pub free: u64,
    /// The size of the file system.
    pub total: u64,
}

/// Maximum default of the space that is kept free, in bytes.
const RESERVE_MAX: u64 = 256 * 1024 * 1024;
/// Divisor of the file system's size: that share is kept free by default if it is less than
/// [`RESERVE_MAX`].
const RESERVE_PART: u64 = 20;

impl Space {
    /// Returns the space that a master keeps free: `configured` bytes, or for 0 the lesser of 256 MiB and a
    /// twentieth of the file system.
    pub fn reserve(&self, configured: u64) -> u64 {
        if configured > 0 { configured } else { RESERVE_MAX.min(self.total / RESERVE_PART) }
    }

    /// Returns the free space below which a master stops before the disk is full: a quarter of the reserve.
    pub fn floor(&self, configured: u64) -> u64 {
        self.reserve(configured) / 4
    }
}

/// A file system. All calls block.
pub trait Disk: Send + Sync + 'static {
    /// Makes a directory and its parents, durably. Only the owner can read the directories made.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Opens a file for appending; the name of a new file is durable on return.
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>>;
    /// Reads the whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Reads up to `length` bytes from `offset`; fewer only at the end of the file.
    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// Lists the names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Replaces a file's content, durably: after a crash the file has the old or the new content.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Removes a file, durably.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and everything below it; the removal of its own name is durable.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Syncs every file and directory at and below `path`.
    fn sync_tree(&self, path: &Path) -> io::Result<()>;
    /// Returns the space of the file system of `path`; `None` if it is not limited.
    fn space(&self, path: &Path) -> io::Result<Option<Space>> {
        let _ = path;
        Ok(None)
    }
    /// Returns how long a sync that has just returned should have blocked. The simulation cannot block, so
    /// it waits that long before the sync counts. A real disk blocks by itself, so this is zero.
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
            // A file that was removed during the walk needs no sync.
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

/// Returns the nearest existing ancestor: a data directory may not exist yet.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."))
}

/// Creates an empty file that only its owner can read, since it may hold keys.
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
