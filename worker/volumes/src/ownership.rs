//! fsGroup: gives a volume's files to the pod's supplementary group, like kubelet's `SetVolumeOwnership`.
//!
//! Containers may write to the volume during the walk (after an upgrade, or if an earlier set-up was
//! interrupted), so every file is opened relative to the volume's root without following symlinks, and
//! changes are made to the opened file.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{Gid, fchownat};

use crate::Error;

const READ_WRITE: u32 = 0o660;
const READ_ONLY: u32 = 0o440;
const EXECUTE: u32 = 0o110;
const SETGID: u32 = 0o2000;

/// Changes the group of the directory `path` and everything below it to `group`, adds the group's mode bits,
/// and sets setgid on directories so that new files keep the group. Does nothing if `group` is `None`. A
/// symlink itself gets the group; its target is never changed.
pub fn set(path: &Path, group: Option<i64>, read_only: bool) -> Result<(), Error> {
    let Some(group) = group.and_then(|g| u32::try_from(g).ok()) else { return Ok(()) };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(path, flags, Mode::empty()).map_err(|e| Error::io("open volume", path, e))?;
    let mut left = vec![PathBuf::from(".")];
    while let Some(relative) = left.pop() {
        let file = match open_beneath(&root, &relative) {
            Ok(file) => file,
            // The file was removed, or replaced by a symlink, since its directory was listed.
            Err(Errno::ENOENT | Errno::ELOOP | Errno::EXDEV | Errno::ENOTDIR) => continue,
            Err(error) => return Err(Error::io("open", path.join(&relative), error)),
        };
        let is_dir = change(&file, Gid::from_raw(group), read_only)
            .map_err(|e| Error::io("change the group of", path.join(&relative), e))?;
        if is_dir {
            for entry in
                fs::read_dir(path_of(&file)).map_err(|e| Error::io("list", path.join(&relative), e))?
            {
                let name = entry.map_err(|e| Error::io("list", path.join(&relative), e))?.file_name();
                left.push(relative.join(name));
            }
        }
    }
    Ok(())
}

fn open_beneath(root: &OwnedFd, relative: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(root, relative, how)
}

/// Returns a path that the kernel resolves to exactly the opened file.
fn path_of(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Changes group and mode of one opened file; returns whether it is a directory.
fn change(file: &OwnedFd, group: Gid, read_only: bool) -> std::io::Result<bool> {
    let before = fstat(file)?;
    let is_dir = is(&before, SFlag::S_IFDIR);
    fchownat(file, "", None, Some(group), AtFlags::AT_EMPTY_PATH)?;
    if is(&before, SFlag::S_IFLNK) {
        return Ok(false);
    }
    let mut mask = if read_only { READ_ONLY } else { READ_WRITE };
    if is_dir {
        mask |= SETGID | EXECUTE;
    }
    fs::set_permissions(path_of(file), fs::Permissions::from_mode(before.st_mode & 0o7777 | mask))?;
    Ok(is_dir)
}

fn is(file: &FileStat, kind: SFlag) -> bool {
    file.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_group_gets_its_files_and_directories_keep_it() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sub/f");
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
        set(dir.path(), Some(1234), true).unwrap();
        let meta = fs::metadata(&file).unwrap();
        assert_eq!((meta.gid(), meta.mode() & 0o777), (1234, 0o440));
        for directory in [dir.path().to_path_buf(), dir.path().join("sub")] {
            let meta = fs::metadata(directory).unwrap();
            assert_eq!((meta.gid(), meta.mode() & SETGID), (1234, SETGID));
        }
    }

    #[test]
    fn what_links_point_to_keeps_its_group_and_mode() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let host = tempfile::tempdir().unwrap();
        let secret = host.path().join("secret");
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(host.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let volume = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&secret, volume.path().join("file")).unwrap();
        std::os::unix::fs::symlink(host.path(), volume.path().join("directory")).unwrap();
        set(volume.path(), Some(1234), false).unwrap();
        for (path, mode) in [(secret.as_path(), 0o600), (host.path(), 0o700)] {
            let meta = fs::metadata(path).unwrap();
            assert_eq!((meta.gid(), meta.mode() & 0o7777), (0, mode), "{}", path.display());
        }
        assert_eq!(fs::symlink_metadata(volume.path().join("file")).unwrap().gid(), 1234);
        let link = host.path().join("volume");
        std::os::unix::fs::symlink(volume.path(), &link).unwrap();
        assert!(set(&link, Some(1), false).is_err(), "a volume's root is never a link");
    }
}
