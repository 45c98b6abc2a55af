//! State of a disk behind one lock: names, open handles, the fault that is set. `fuse` calls it for every
//! request of the kernel, `server` for every control request.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt, DirEntryExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt,
};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo};

use crate::cut::{self, PowerCut};
use crate::data::{BLOCK, Data};
use crate::fault::{Access, Counts, DiskFault};
use crate::names::{Names, is_hidden};

/// Maximum memory for data that is not synced, in bytes; beyond it the file that uses most is written back.
const PENDING_BYTES: u64 = 256 * 1024 * 1024;
/// Number of writes between two checks of that memory.
const PENDING_CHECK: u64 = 256;

/// State of a disk.
pub(crate) struct State {
    names: Names,
    handles: HashMap<u64, Handle>,
    next_handle: u64,
    sequence: u64,
    fault: Option<DiskFault>,
    counts: Counts,
    /// Moment at which a disk limited in operations has done all operations so far.
    free: Instant,
}

/// An entry of a directory, as of the time the directory was opened.
pub(crate) struct Entry {
    pub(crate) number: u64,
    pub(crate) kind: FileType,
    pub(crate) name: std::ffi::OsString,
}

#[derive(Clone)]
enum Handle {
    File { node: u64, append: bool, sync: bool },
    Directory { node: u64, entries: Arc<Vec<Entry>> },
}

/// Attributes that `setattr` changes; `None` for those it leaves.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    pub(crate) mode: Option<u32>,
    pub(crate) owner: (Option<u32>, Option<u32>),
    pub(crate) size: Option<u64>,
    pub(crate) accessed: Option<SystemTime>,
    pub(crate) modified: Option<SystemTime>,
}

type Answer<T> = Result<T, Errno>;

// === impl Handle ===

impl Handle {
    fn node(&self) -> u64 {
        match self {
            Self::File { node, .. } | Self::Directory { node, .. } => *node,
        }
    }
}

// === impl State ===

impl State {
    pub(crate) fn new(backing: &Path) -> io::Result<Self> {
        Ok(Self {
            names: Names::new(backing)?,
            handles: HashMap::new(),
            next_handle: 1,
            sequence: 1,
            fault: None,
            counts: Counts::default(),
            free: Instant::now(),
        })
    }

    pub(crate) fn set_fault(&mut self, fault: Option<DiskFault>) {
        self.fault = fault;
    }

    pub(crate) fn counts(&mut self) -> Counts {
        Counts { pending_bytes: self.names.pending_bytes(), ..self.counts }
    }

    /// Cuts the power: what was not synced may be lost, and every open handle becomes invalid.
    pub(crate) fn power_cut(&mut self, seed: u64) -> io::Result<PowerCut> {
        self.counts.cuts += 1;
        self.handles.clear();
        cut::cut(&mut self.names, seed)
    }

    /// Returns how much longer a call takes; fails if the fault makes the call fail.
    pub(crate) fn admit(&mut self, access: Access) -> Answer<Duration> {
        let (now, counts, free) = (Instant::now(), &mut self.counts, &mut self.free);
        self.fault.map_or(Ok(Duration::ZERO), |fault| fault.meets(access, counts, now, free))
    }

    /// Checks a change of names against the fault, which may refuse it but does not delay it.
    fn admit_name(&mut self, access: Access) -> Answer<()> {
        match self.fault {
            Some(fault @ (DiskFault::Eio | DiskFault::Enospc)) => {
                fault.meets(access, &mut self.counts, Instant::now(), &mut self.free).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    // --- names ---

    pub(crate) fn look_up(&mut self, directory: u64, name: &OsStr) -> Answer<FileAttr> {
        let node = self.names.look_up(directory, name)?;
        self.attributes(node)
    }

    pub(crate) fn forget(&mut self, node: u64, lookups: u64) {
        self.names.forget(node, lookups);
    }

    pub(crate) fn attributes(&mut self, node: u64) -> Answer<FileAttr> {
        let metadata = match &self.names.node(node)?.data {
            Some(data) => data.file().metadata()?,
            None => fs::symlink_metadata(self.names.path(node)?)?,
        };
        Ok(attributes(node, &metadata))
    }

    pub(crate) fn set_attributes(&mut self, node: u64, change: &Attributes) -> Answer<FileAttr> {
        if let Some(size) = change.size {
            let sequence = self.next_sequence();
            let grows = size > self.data(node)?.len();
            self.admit_name(if grows { Access::Grow } else { Access::Overwrite })?;
            let changed = self.data(node)?.set_len(size, sequence);
            self.names.settle(node);
            changed?;
        }
        let path = self.names.path(node)?;
        if let Some(mode) = change.mode {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777))?;
        }
        if change.owner != (None, None) {
            std::os::unix::fs::lchown(&path, change.owner.0, change.owner.1)?;
        }
        let mut times = FileTimes::new();
        times = change.accessed.map_or(times, |at| times.set_accessed(at));
        times = change.modified.map_or(times, |at| times.set_modified(at));
        if change.accessed.or(change.modified).is_some() {
            File::open(&path)?.set_times(times)?;
        }
        self.attributes(node)
    }

    pub(crate) fn make_directory(&mut self, directory: u64, name: &OsStr, mode: u32) -> Answer<FileAttr> {
        self.make(directory, name, |path| fs::DirBuilder::new().mode(mode).create(path))
    }

    pub(crate) fn make_link(&mut self, directory: u64, name: &OsStr, target: &Path) -> Answer<FileAttr> {
        self.make(directory, name, |path| std::os::unix::fs::symlink(target, path))
    }

    pub(crate) fn read_link(&mut self, node: u64) -> Answer<std::path::PathBuf> {
        Ok(fs::read_link(self.names.path(node)?)?)
    }

    fn make(
        &mut self,
        directory: u64,
        name: &OsStr,
        make: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Answer<FileAttr> {
        if is_hidden(directory, name) {
            return Err(Errno::EPERM);
        }
        self.admit_name(Access::Grow)?;
        make(&self.names.path_of(directory, name)?)?;
        let sequence = self.next_sequence();
        let node = self.names.created(directory, name, sequence)?;
        self.attributes(node)
    }

    pub(crate) fn remove(&mut self, directory: u64, name: &OsStr, is_directory: bool) -> Answer<()> {
        self.admit_name(Access::Name)?;
        let path = self.names.path_of(directory, name)?;
        let metadata = fs::symlink_metadata(&path)?;
        if is_directory != metadata.is_dir() {
            return Err(if is_directory { Errno::ENOTDIR } else { Errno::EISDIR });
        }
        if is_directory && fs::read_dir(&path)?.next().is_some() {
            return Err(Errno::ENOTEMPTY);
        }
        let sequence = self.next_sequence();
        self.names.remove(directory, name, sequence)
    }

    pub(crate) fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), must_be_new: bool) -> Answer<()> {
        self.admit_name(Access::Name)?;
        if is_hidden(to.0, to.1) {
            return Err(Errno::EPERM);
        }
        let source = fs::symlink_metadata(self.names.path_of(from.0, from.1)?)?;
        let target = self.names.path_of(to.0, to.1)?;
        if let Ok(replaced) = fs::symlink_metadata(&target) {
            if must_be_new {
                return Err(Errno::EEXIST);
            }
            match (source.is_dir(), replaced.is_dir()) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if fs::read_dir(&target)?.next().is_some() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
        }
        let sequence = self.next_sequence();
        self.names.rename(from, to, sequence)
    }

    // --- files ---

    /// Returns the data of a file, opening the file if needed.
    fn data(&mut self, node: u64) -> Answer<&mut Data> {
        if self.names.node(node)?.data.is_none() {
            let file = OpenOptions::new().read(true).write(true).open(self.names.path(node)?)?;
            self.names.node(node)?.data = Some(Data::new(file)?);
        }
        self.names.node(node)?.data.as_mut().ok_or(Errno::EIO)
    }

    pub(crate) fn open(&mut self, node: u64, flags: i32) -> Answer<u64> {
        self.data(node)?;
        self.handle(Handle::File {
            node,
            append: flags & nix::libc::O_APPEND != 0,
            sync: flags & nix::libc::O_DSYNC != 0,
        })
    }

    pub(crate) fn create(
        &mut self,
        directory: u64,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> Answer<(FileAttr, u64)> {
        let create =
            |path: &Path| OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map(drop);
        let made = self.make(directory, name, create)?;
        let handle = self.open(made.ino.0, flags)?;
        Ok((made, handle))
    }

    fn handle(&mut self, handle: Handle) -> Answer<u64> {
        self.names.node(handle.node())?.handles += 1;
        self.next_handle += 1;
        self.handles.insert(self.next_handle, handle);
        Ok(self.next_handle)
    }

    pub(crate) fn release(&mut self, handle: u64) {
        // After a power cut the handle does not exist any more.
        if let Some(handle) = self.handles.remove(&handle)
            && let Ok(node) = self.names.node(handle.node())
        {
            node.handles -= 1;
            self.names.settle(handle.node());
        }
    }

    fn opened(&self, handle: u64) -> Answer<Handle> {
        self.handles.get(&handle).cloned().ok_or(Errno::EIO)
    }

    /// Returns the file to read from.
    pub(crate) fn reading(&mut self, handle: u64) -> Answer<Arc<File>> {
        let node = self.opened(handle)?.node();
        self.admit(Access::Read)?;
        Ok(self.data(node)?.file().clone())
    }

    /// Checks a write against the fault; returns its delay.
    pub(crate) fn admit_write(&mut self, handle: u64, end: u64) -> Answer<Duration> {
        let node = self.opened(handle)?.node();
        let grows = end > self.data(node)?.len();
        self.admit(if grows { Access::Grow } else { Access::Overwrite })
    }

    pub(crate) fn write(&mut self, handle: u64, offset: u64, bytes: &[u8]) -> Answer<()> {
        let Handle::File { node, append, sync } = self.opened(handle)? else { return Err(Errno::EISDIR) };
        let sequence = self.next_sequence();
        let data = self.data(node)?;
        let offset = if append { data.len() } else { offset };
        data.write(offset, bytes, sequence)?;
        if sync {
            data.synced();
        }
        self.counts.writes += 1;
        if self.counts.writes.is_multiple_of(PENDING_CHECK)
            && self.names.pending_bytes() > PENDING_BYTES
            && let Some(heaviest) = self.names.heaviest()
        {
            heaviest.synced();
            self.counts.written_back += 1;
        }
        Ok(())
    }

    /// Checks a sync of an open file or directory against the fault; a failed sync marks the file's data as
    /// lost.
    pub(crate) fn admit_sync(&mut self, handle: u64) -> Answer<Duration> {
        let node = self.opened(handle)?.node();
        let admitted = self.admit(Access::Sync);
        if admitted.is_err()
            && let Some(data) = &mut self.names.node(node)?.data
        {
            data.forsake();
        }
        admitted
    }

    pub(crate) fn sync(&mut self, handle: u64) -> Answer<()> {
        self.counts.syncs += 1;
        match self.opened(handle)? {
            Handle::File { node, .. } => {
                self.data(node)?.synced();
            }
            Handle::Directory { node, .. } => self.names.synced(node),
        }
        Ok(())
    }

    pub(crate) fn open_directory(&mut self, node: u64) -> Answer<u64> {
        let mut entries = Vec::new();
        for (number, name) in [(node, "."), (1, "..")] {
            entries.push(Entry { number, kind: FileType::Directory, name: name.into() });
        }
        for entry in fs::read_dir(self.names.path(node)?)? {
            let entry = entry?;
            if !is_hidden(node, &entry.file_name()) {
                let kind = kind(entry.file_type()?);
                entries.push(Entry { number: entry.ino(), kind, name: entry.file_name() });
            }
        }
        self.handle(Handle::Directory { node, entries: Arc::new(entries) })
    }

    pub(crate) fn entries(&mut self, handle: u64) -> Answer<Arc<Vec<Entry>>> {
        match self.opened(handle)? {
            Handle::Directory { entries, .. } => Ok(entries),
            Handle::File { .. } => Err(Errno::ENOTDIR),
        }
    }

    /// Returns the space of the backing file system, with none free if the disk is to be full.
    pub(crate) fn space(&mut self) -> Answer<nix::sys::statvfs::Statvfs> {
        let root = self.names.path(crate::names::ROOT)?;
        nix::sys::statvfs::statvfs(&root).map_err(|errno| Errno::from_i32(errno as i32))
    }

    pub(crate) fn is_full(&self) -> bool {
        self.fault == Some(DiskFault::Enospc)
    }
}

fn kind(of: fs::FileType) -> FileType {
    match () {
        () if of.is_dir() => FileType::Directory,
        () if of.is_symlink() => FileType::Symlink,
        () if of.is_fifo() => FileType::NamedPipe,
        () if of.is_socket() => FileType::Socket,
        () if of.is_char_device() => FileType::CharDevice,
        () if of.is_block_device() => FileType::BlockDevice,
        () => FileType::RegularFile,
    }
}

fn attributes(node: u64, metadata: &fs::Metadata) -> FileAttr {
    let time = |seconds: i64, nanoseconds: i64| {
        let seconds = u64::try_from(seconds).unwrap_or(0);
        UNIX_EPOCH + Duration::new(seconds, u32::try_from(nanoseconds).unwrap_or(0))
    };
    FileAttr {
        ino: INodeNo(node),
        size: metadata.len(),
        blocks: metadata.blocks(),
        atime: time(metadata.atime(), metadata.atime_nsec()),
        mtime: time(metadata.mtime(), metadata.mtime_nsec()),
        ctime: time(metadata.ctime(), metadata.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: kind(metadata.file_type()),
        perm: (metadata.mode() & 0o7777) as u16,
        nlink: u32::try_from(metadata.nlink()).unwrap_or(u32::MAX),
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: u32::try_from(metadata.rdev()).unwrap_or(0),
        blksize: BLOCK as u32,
        flags: 0,
    }
}
