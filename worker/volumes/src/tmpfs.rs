//! Mounts: tmpfs for secrets and memory-backed emptyDirs, and finding and unmounting mounts below a
//! directory.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::Error;

/// Mounts a tmpfs on `path` unless something is mounted there. `size_bytes` is its limit (`None` or 0 for the
/// kernel's default); its root directory belongs to `group` (fsGroup), also for new files in it.
pub fn mount_tmpfs(path: &Path, size_bytes: Option<i64>, group: Option<i64>) -> Result<(), Error> {
    if is_mount_point(path)? {
        return Ok(());
    }
    let mut options = String::from("mode=1777");
    if let Some(group) = group.and_then(|group| u32::try_from(group).ok()) {
        options = format!("mode=3777,gid={group}");
    }
    if let Some(size) = size_bytes.filter(|size| *size > 0) {
        options.push_str(&format!(",size={size}"));
    }
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .map_err(|e| Error::io("mount tmpfs on", path, e))
}

/// Returns whether `path` itself is a mount point.
pub fn is_mount_point(path: &Path) -> Result<bool, Error> {
    Ok(mounts_below(path)?.iter().any(|mounted| mounted == path))
}

/// Returns the mount points at and below `path`, last mounted first: the order in which they must be
/// unmounted.
pub fn mounts_below(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let info = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(info).map_err(|e| Error::io("read", info, e))?;
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let mut found: Vec<PathBuf> = text
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(unescape)
        .filter(|mounted| mounted.starts_with(&path))
        .collect();
    found.reverse();
    Ok(found)
}

/// Unmounts everything at and below `path`; a busy mount is detached and disappears with its last user.
pub fn unmount_below(path: &Path) -> Result<(), Error> {
    for mounted in mounts_below(path)? {
        let flags = MntFlags::UMOUNT_NOFOLLOW;
        if umount2(&mounted, flags).is_err() {
            umount2(&mounted, flags | MntFlags::MNT_DETACH).map_err(|e| Error::io("unmount", &mounted, e))?;
        }
    }
    Ok(())
}

/// Decodes a field of mountinfo, where space, tab, newline and backslash are octal escapes.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|d| *first == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        if let Some(digits) = digits {
            bytes.push(
                digits.iter().fold(0_u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')),
            );
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_of_mountinfo_are_read() {
        assert_eq!(unescape(b"/a\\040b\\134c"), Path::new("/a b\\c"));
    }

    #[test]
    fn a_tmpfs_is_found_and_unmounted() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        mount_tmpfs(&volume, Some(1 << 20), None).unwrap();
        mount_tmpfs(&volume, Some(1 << 20), None).unwrap();
        assert_eq!(mounts_below(dir.path()).unwrap().len(), 1, "a second call mounts nothing");
        unmount_below(dir.path()).unwrap();
        assert!(mounts_below(dir.path()).unwrap().is_empty());
    }
}
