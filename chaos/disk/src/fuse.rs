//! Handles the kernel's requests and passes each to [`State`]. A request that a fault delays waits in a
//! thread of its own, so that others are not held up.
//!
//! Files are open for direct I/O: every read and write comes to this file system, and the kernel's cache
//! holds nothing from before a power cut. Shared writable mappings are refused for the same reason.
//! `sync_file_range` and `sync` never reach a FUSE file system, so they make nothing durable.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::lock;
use crate::state::{Attributes, State};

/// Time for which the kernel may cache names and sizes: zero, since a power cut changes them.
const TTL: Duration = Duration::ZERO;

/// The file system that serves the kernel's requests.
pub(crate) struct Volume {
    state: Arc<Mutex<State>>,
}

impl Volume {
    pub(crate) fn new(state: Arc<Mutex<State>>) -> Self {
        Self { state }
    }

    fn synchronize(&self, handle: FileHandle, reply: ReplyEmpty) {
        let answer = lock(&self.state).admit_sync(handle.0);
        let delay = match answer {
            Ok(delay) => delay,
            Err(error) => return reply.error(error),
        };
        let state = self.state.clone();
        after(delay, move || empty(lock(&state).sync(handle.0), reply));
    }
}

/// Runs `work` now, or in a new thread after `delay`.
fn after(delay: Duration, work: impl FnOnce() + Send + 'static) {
    if delay.is_zero() {
        return work();
    }
    std::thread::spawn(move || {
        std::thread::sleep(delay);
        work();
    });
}

fn empty(answer: Result<(), Errno>, reply: ReplyEmpty) {
    match answer {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn entry(answer: Result<fuser::FileAttr, Errno>, reply: ReplyEntry) {
    match answer {
        Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn attributes(answer: Result<fuser::FileAttr, Errno>, reply: ReplyAttr) {
    match answer {
        Ok(attributes) => reply.attr(&TTL, &attributes),
        Err(error) => reply.error(error),
    }
}

fn moment(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

impl Filesystem for Volume {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(lock(&self.state).look_up(parent.0, name), reply);
    }

    fn forget(&self, _: &Request, node: INodeNo, lookups: u64) {
        lock(&self.state).forget(node.0, lookups);
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        attributes(lock(&self.state).attributes(node.0), reply);
    }

    fn setattr(
        &self,
        _: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (accessed, modified) = (atime.map(moment), mtime.map(moment));
        let change = Attributes { mode, owner: (uid, gid), size, accessed, modified };
        attributes(lock(&self.state).set_attributes(node.0, &change), reply);
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        let answer = lock(&self.state).read_link(node.0);
        match answer {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        entry(lock(&self.state).make_directory(parent.0, name, mode), reply);
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        entry(lock(&self.state).make_link(parent.0, name, target), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(lock(&self.state).remove(parent.0, name, false), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(lock(&self.state).remove(parent.0, name, true), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) {
            return reply.error(Errno::EINVAL);
        }
        let must_be_new = flags.contains(RenameFlags::RENAME_NOREPLACE);
        let answer = lock(&self.state).rename((parent.0, name), (new_parent.0, new_name), must_be_new);
        empty(answer, reply);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let answer = lock(&self.state).create(parent.0, name, mode, flags);
        match answer {
            Ok((attributes, handle)) => reply.created(
                &TTL,
                &attributes,
                Generation(0),
                FileHandle(handle),
                FopenFlags::FOPEN_DIRECT_IO,
            ),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let answer = lock(&self.state).open(node.0, flags.0);
        match answer {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let answer = lock(&self.state).reading(handle.0);
        let file = match answer {
            Ok(file) => file,
            Err(error) => return reply.error(error),
        };
        let mut bytes = vec![0; size as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) => return reply.error(error.into()),
            }
        }
        reply.data(&bytes[..filled]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let answer = |result: Result<(), Errno>, length: usize, reply: ReplyWrite| match result {
            // A request has at most 16 MiB, so the length fits.
            Ok(()) => reply.written(length as u32),
            Err(error) => reply.error(error),
        };
        let mut state = lock(&self.state);
        match state.admit_write(handle.0, offset + data.len() as u64) {
            Err(error) => reply.error(error),
            Ok(delay) if delay.is_zero() => {
                let result = state.write(handle.0, offset, data);
                drop(state);
                answer(result, data.len(), reply);
            }
            Ok(delay) => {
                let (state, data) = (self.state.clone(), data.to_vec());
                after(delay, move || {
                    let result = lock(&state).write(handle.0, offset, &data);
                    answer(result, data.len(), reply);
                });
            }
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Closing a file makes nothing durable.
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        lock(&self.state).release(handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.synchronize(handle, reply);
    }

    fn opendir(&self, _: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let answer = lock(&self.state).open_directory(node.0);
        match answer {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let answer = lock(&self.state).entries(handle.0);
        let entries = match answer {
            Ok(entries) => entries,
            Err(error) => return reply.error(error),
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (position, entry) in entries.iter().enumerate().skip(from) {
            if reply.add(INodeNo(entry.number), position as u64 + 1, entry.kind, &entry.name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        lock(&self.state).release(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.synchronize(handle, reply);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let mut state = lock(&self.state);
        match state.space() {
            Ok(space) => {
                let free = |blocks: u64| if state.is_full() { 0 } else { blocks };
                reply.statfs(
                    space.blocks(),
                    free(space.blocks_free()),
                    free(space.blocks_available()),
                    space.files(),
                    free(space.files_free()),
                    u32::try_from(space.block_size()).unwrap_or(u32::MAX),
                    u32::try_from(space.name_max()).unwrap_or(255),
                    u32::try_from(space.fragment_size()).unwrap_or(u32::MAX),
                );
            }
            Err(error) => reply.error(error),
        }
    }
}
