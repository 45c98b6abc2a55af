//! Unpacks one layer's tar archive into one lower directory of overlayfs.
//!
//! All files are written by a thread whose root directory is the target (`chroot` with a private
//! `fs_struct`), so that no name, link or `..` in the archive reaches outside; bytes and entries are
//! bounded. Whiteouts (`.wh.NAME`, `.wh..wh..opq`, OCI image-spec "Layer") become a 0:0 character device
//! and `trusted.overlay.opaque`.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fstat, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, chroot, fchownat};
use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};

use super::ImageError;
use super::budget::{Budget, Gauge};
use super::content::hex_digest;
use crate::config::ImageLimits;

/// Maximum number of bytes of all directory names in a layer.
const DIRECTORY_NAMES_BYTES: usize = 64 << 20;

const OPAQUE: &str = "trusted.overlay.opaque";

/// Number of bytes in files and number of entries of an unpacked layer.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Unpacked {
    pub bytes: u64,
    pub entries: u64,
}

/// Unpacks the layer in `blob` (plain, gzip or zstd) into the empty directory `target` and
/// checks that the plain tar is `diff_id`. `parents` are the lower layers, topmost first:
/// they lend owner and mode to directories that the layer does not list, and files to
/// hard links. Blocks; on an error the directory is left for the caller to remove.
pub(crate) fn unpack(
    blob: File,
    target: &Path,
    parents: &[PathBuf],
    diff_id: &str,
    limits: &ImageLimits,
    budget: &Arc<Budget>,
) -> Result<Unpacked, ImageError> {
    let parents: Vec<File> = parents.iter().map(File::open).collect::<Result<_, _>>()?;
    let reader = HashingReader { inner: plain(blob)?, hash: Sha256::new(), left: limits.layer_bytes };
    let target = target.to_owned();
    let (entries, budget) = (limits.layer_entries, budget.clone());
    let thread = std::thread::Builder::new().name("unpack".into()).spawn(move || {
        unshare(CloneFlags::CLONE_FS).map_err(io::Error::from)?;
        chroot(&target).map_err(io::Error::from)?;
        std::env::set_current_dir("/")?;
        let directories = Directories::default();
        Layer { parents, entries, budget, directories, count: Unpacked::default() }.run(reader)
    })?;
    let (count, actual) =
        thread.join().map_err(|_| ImageError::Invalid("the layer could not be unpacked".into()))??;
    if actual != diff_id {
        return Err(ImageError::DigestMismatch { expected: diff_id.to_owned(), actual });
    }
    Ok(count)
}

/// Returns a reader of the uncompressed bytes; recognizes gzip, zstd or plain data by the first bytes.
pub(crate) fn plain<R: Read + Send + 'static>(mut source: R) -> io::Result<Box<dyn Read + Send>> {
    let mut magic = [0; 4];
    let mut length = 0;
    while length < magic.len() {
        match source.read(&mut magic[length..])? {
            0 => break,
            count => length += count,
        }
    }
    let source =
        io::BufReader::with_capacity(128 << 10, io::Cursor::new(magic).take(length as u64).chain(source));
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::with_buffer(source)?),
        _ => Box::new(source),
    })
}

/// Hashes the bytes that it reads and fails after more than `left` bytes.
struct HashingReader<R> {
    inner: R,
    hash: Sha256,
    left: u64,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, "the layer is larger than allowed"))?;
        Ok(count)
    }
}

struct Layer {
    parents: Vec<File>,
    entries: u64,
    budget: Arc<Budget>,
    directories: Directories,
    count: Unpacked,
}

/// Modification times of directories; applied last, because adding entries to a directory changes them.
#[derive(Default)]
struct Directories {
    times: Vec<(PathBuf, i64)>,
    bytes: usize,
}

impl Directories {
    fn push(&mut self, path: &Path, modified: i64) -> io::Result<()> {
        self.bytes += path.as_os_str().len();
        if self.bytes > DIRECTORY_NAMES_BYTES {
            let text =
                format!("the names of the layer's directories are longer than {DIRECTORY_NAMES_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        self.times.push((path.to_owned(), modified));
        Ok(())
    }
}

impl Layer {
    fn run<R: Read>(mut self, reader: HashingReader<R>) -> Result<(Unpacked, String), ImageError> {
        let gauge = Gauge::default();
        let mut archive = Archive::new(gauge.watch(reader));
        archive.set_ignore_zeros(false);
        let mut entries = archive.entries()?;
        loop {
            gauge.before_headers();
            let Some(entry) = entries.next() else { break };
            let mut entry = entry?;
            gauge.before_content();
            self.count.entries += 1;
            if self.count.entries > self.entries {
                return Err(ImageError::TooLarge(format!("layer has more than {} entries", self.entries)));
            }
            self.budget.take_entry()?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let done = self.entry(&mut entry).and_then(|()| io::copy(&mut entry, &mut io::sink()));
            done.map_err(|e| match e.kind() {
                io::ErrorKind::FileTooLarge => ImageError::TooLarge(format!("unpack \"{name}\": {e}")),
                _ => ImageError::Invalid(format!("unpack \"{name}\": {e}")),
            })?;
        }
        for (path, time) in self.directories.times.iter().rev() {
            set_time(path, *time)?;
        }
        // The digest covers the whole tar, including the padding after its end.
        gauge.before_content();
        let mut reader = archive.into_inner().into_inner();
        io::copy(&mut reader, &mut io::sink())?;
        Ok((self.count, hex_digest(reader.hash)))
    }

    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> io::Result<()> {
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = inside(&entry.path_bytes())?;
        if path.parent().is_some() {
            self.make_parents(&path)?;
        }
        if let Some(hidden) = path.file_name().and_then(|n| n.as_bytes().strip_prefix(b".wh.")) {
            return whiteout(&path, hidden);
        }
        let modified = i64::try_from(entry.header().mtime()?).unwrap_or(0);
        match entry.header().entry_type() {
            EntryType::Directory => {
                make_directory(&path)?;
                self.directories.push(&path, modified)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.regular(entry, &path)?
            }
            EntryType::Link => return self.hard_link(entry, &path),
            EntryType::Symlink => {
                let target =
                    entry.link_name_bytes().ok_or_else(|| invalid("symbolic link without target"))?;
                make_way(&path)?;
                std::os::unix::fs::symlink(OsStr::from_bytes(&target), &path)?;
            }
            kind @ (EntryType::Char | EntryType::Block | EntryType::Fifo) => special(entry, &path, kind)?,
            _ => return Err(invalid("unsupported kind of entry")),
        }
        metadata(entry, &path)?;
        if entry.header().entry_type() != EntryType::Directory {
            set_time(&path, modified)?;
        }
        Ok(())
    }

    fn regular<R: Read>(&mut self, entry: &mut Entry<'_, R>, path: &Path) -> io::Result<()> {
        make_way(path)?;
        let flags = OFlag::O_NOFOLLOW.bits();
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(flags).open(path)?;
        self.count.bytes += self.budget.copy(entry, &mut file)?;
        Ok(())
    }

    fn hard_link<R: Read>(&mut self, entry: &mut Entry<'_, R>, path: &Path) -> io::Result<()> {
        let name = entry.link_name_bytes().ok_or_else(|| invalid("hard link without target"))?;
        let target = inside(&name)?;
        if target == path {
            return Ok(());
        }
        make_way(path)?;
        match fs::hard_link(&target, path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.copy_from_parents(&target, path),
            other => other,
        }
    }

    /// Copies a lower layer's file into this layer, as overlayfs would, for a hard link that names it.
    fn copy_from_parents(&mut self, target: &Path, path: &Path) -> io::Result<()> {
        let relative = target.strip_prefix("/").unwrap_or(target);
        for parent in &self.parents {
            let Ok(found) = open_below(parent, relative, OFlag::O_PATH) else { continue };
            let status = fstat(&found)?;
            if SFlag::from_bits_truncate(status.st_mode & libc::S_IFMT) != SFlag::S_IFREG {
                break;
            }
            let mut source = File::from(open_below(parent, relative, OFlag::O_RDONLY)?);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            self.count.bytes += self.budget.copy(&mut source, &mut file)?;
            set_owner(path, status.st_uid, status.st_gid)?;
            return fs::set_permissions(path, fs::Permissions::from_mode(status.st_mode & 0o7777));
        }
        Err(invalid("hard link to a file that is not there"))
    }

    /// Creates the parent directories of `path`. A directory that the layer does not list gets owner and
    /// mode from the lower layers, because overlayfs uses those of the topmost directory.
    fn make_parents(&mut self, path: &Path) -> io::Result<()> {
        let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|p| *p != Path::new("/")).collect();
        above.reverse();
        for directory in above {
            match fs::metadata(directory) {
                Ok(found) if found.is_dir() => continue,
                Ok(found) if is_whiteout(&found) => {}
                Ok(_) => return Err(invalid("a file stands where a directory must be")),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            make_directory(directory)?;
            let relative = directory.strip_prefix("/").unwrap_or(directory);
            let below = self
                .parents
                .iter()
                .find_map(|parent| fstat(open_below(parent, relative, OFlag::O_PATH).ok()?).ok())
                .filter(|s| s.st_mode & libc::S_IFMT == libc::S_IFDIR);
            if let Some(status) = below {
                set_owner(directory, status.st_uid, status.st_gid)?;
                fs::set_permissions(directory, fs::Permissions::from_mode(status.st_mode & 0o7777))?;
            }
        }
        Ok(())
    }
}

/// Opens `relative` below a lower layer, which lies outside of the new root, without following symbolic
/// links, which could lead anywhere.
fn open_below(parent: &File, relative: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(parent, relative, how)
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Returns the absolute path, below the new root, of a name in the archive.
fn inside(name: &[u8]) -> io::Result<PathBuf> {
    let mut path = PathBuf::from("/");
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(invalid("path leads out of the layer"));
            }
        }
    }
    Ok(path)
}

fn is_whiteout(found: &fs::Metadata) -> bool {
    found.file_type().is_char_device() && found.rdev() == 0
}

fn whiteout(path: &Path, hidden: &[u8]) -> io::Result<()> {
    if hidden == b".wh..opq" {
        return xattr::set(path.parent().unwrap_or(Path::new("/")), OPAQUE, b"y");
    }
    // Other names that begin with `.wh..wh.` belong to aufs and are ignored.
    if hidden.starts_with(b".wh.") || hidden.is_empty() {
        return Ok(());
    }
    if hidden == b"." || hidden == b".." || hidden.contains(&b'/') {
        return Err(invalid("whiteout of no file"));
    }
    let path = path.with_file_name(OsStr::from_bytes(hidden));
    match fs::symlink_metadata(&path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Ok(mknod(&path, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))?)
        }
        Err(e) => Err(e),
    }
}

/// Creates a directory; keeps an existing directory and replaces any other file at `path`.
fn make_directory(path: &Path) -> io::Result<()> {
    let hidden_below = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(found) => {
            fs::remove_file(path)?;
            is_whiteout(&found)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(e),
    };
    DirBuilder::new().mode(0o755).create(path)?;
    if hidden_below {
        xattr::set(path, OPAQUE, b"y")?;
    }
    Ok(())
}

/// Removes the file or directory at `path`, if there is one.
fn make_way(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(_) if path == Path::new("/") => Err(invalid("the root is a directory")),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn special<R: Read>(entry: &Entry<'_, R>, path: &Path, kind: EntryType) -> io::Result<()> {
    make_way(path)?;
    let flag = match kind {
        EntryType::Char => SFlag::S_IFCHR,
        EntryType::Block => SFlag::S_IFBLK,
        _ => SFlag::S_IFIFO,
    };
    let major = entry.header().device_major()?.unwrap_or(0);
    let minor = entry.header().device_minor()?.unwrap_or(0);
    Ok(mknod(path, flag, Mode::from_bits_truncate(0o600), makedev(major.into(), minor.into()))?)
}

fn set_owner(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    Ok(fchownat(AT_FDCWD, path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)?)
}

fn metadata<R: Read>(entry: &mut Entry<'_, R>, path: &Path) -> io::Result<()> {
    let number = |n: u64| u32::try_from(n).map_err(|_| invalid("owner out of range"));
    let (uid, gid) = (number(entry.header().uid()?)?, number(entry.header().gid()?)?);
    let mode = entry.header().mode()? & 0o7777;
    let link = entry.header().entry_type() == EntryType::Symlink;
    set_owner(path, uid, gid)?;
    if !link {
        // Set after the owner, because changing the owner clears the set-id bits.
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
    for extension in extensions {
        let extension = extension?;
        let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
        // overlayfs's own attributes, if taken from an image, would change the meaning of other layers.
        if name.starts_with(b"trusted.overlay.") {
            continue;
        }
        match xattr::set(path, OsStr::from_bytes(name), extension.value_bytes()) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            Err(e) if link && e.kind() == io::ErrorKind::PermissionDenied => {}
            other => other?,
        }
    }
    Ok(())
}

fn set_time(path: &Path, seconds: i64) -> io::Result<()> {
    let time = TimeSpec::new(seconds, 0);
    Ok(utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

#[cfg(test)]
mod tests;
