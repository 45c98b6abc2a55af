//! fsGroup: gives a volume's files to the pod's supplementary group, as kubelet's `SetVolumeOwnership` does.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::Path;

use crate::Error;

const READ_WRITE: u32 = 0o660;
const READ_ONLY: u32 = 0o440;
const EXECUTE: u32 = 0o110;
const SETGID: u32 = 0o2000;

/// Changes the group of everything below and including `path` to `group`, adds its mode bits, and sets setgid on directories so
/// that new files stay in the group. `on_root_mismatch` skips the walk when the root already fits
/// (`fsGroupChangePolicy: OnRootMismatch`).
pub fn set(path: &Path, group: Option<i64>, read_only: bool, on_root_mismatch: bool) -> Result<(), Error> {
    let Some(group) = group.and_then(|g| u32::try_from(g).ok()) else { return Ok(()) };
    if on_root_mismatch && root_fits(path, group, read_only)? {
        return Ok(());
    }
    walk(path, group, read_only)
}

fn root_fits(path: &Path, group: u32, read_only: bool) -> Result<bool, Error> {
    let meta = fs::symlink_metadata(path).map_err(|e| Error::io("stat", path, e))?;
    let wanted = SETGID | EXECUTE | if read_only { READ_ONLY } else { READ_WRITE };
    Ok(meta.gid() == group && meta.mode() & wanted == wanted)
}

/// Children first: a root that fits says that everything below it does too.
fn walk(path: &Path, group: u32, read_only: bool) -> Result<(), Error> {
    let meta = fs::symlink_metadata(path).map_err(|e| Error::io("stat", path, e))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path).map_err(|e| Error::io("list", path, e))? {
            walk(&entry.map_err(|e| Error::io("list", path, e))?.path(), group, read_only)?;
        }
    }
    lchown(path, None, Some(group)).map_err(|e| Error::io("chown", path, e))?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    let mut mask = if read_only { READ_ONLY } else { READ_WRITE };
    if meta.is_dir() {
        mask |= SETGID | EXECUTE;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(meta.mode() & 0o7777 | mask))
        .map_err(|e| Error::io("chmod", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_gets_its_files_and_directories_keep_it() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
        set(dir.path(), Some(1234), true, false).unwrap();
        let meta = fs::metadata(&file).unwrap();
        assert_eq!((meta.gid(), meta.mode() & 0o777), (1234, 0o440));
        let meta = fs::metadata(dir.path()).unwrap();
        assert_eq!((meta.gid(), meta.mode() & SETGID), (1234, SETGID));
    }
}
