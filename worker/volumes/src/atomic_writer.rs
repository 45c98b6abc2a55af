//! Writes a set of files so that readers see either the old set or the new one, as kubelet's atomic writer does.
//!
//! The files are stored in a timestamped directory; `..data` is a symlink to it, replaced by rename; each
//! user-visible name is a symlink through `..data`. Nothing is written if the files on disk are already the
//! requested ones. Used by every volume type made of API objects.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use crate::Error;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Content and permissions of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProjection {
    /// Content of the file.
    pub data: Vec<u8>,
    /// Mode bits.
    pub mode: u32,
    /// User id of the owner; `None` for root. Set for token files that a single user may read.
    pub owner: Option<u32>,
}

/// Files by relative path.
pub type Payload = BTreeMap<String, FileProjection>;

/// Makes `target` hold exactly `payload`. `set_permissions` is called with the new timestamped directory
/// before that becomes visible. Returns whether anything changed.
pub fn write(
    target: &Path,
    payload: &Payload,
    set_permissions: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<bool, Error> {
    for path in payload.keys() {
        validate(path)?;
    }
    let data_link = target.join(DATA);
    let old = match fs::read_link(&data_link) {
        Ok(name) => Some(target.join(name)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io("read link", data_link, error)),
    };
    let unchanged = old.as_ref().is_some_and(|old| matches!(holds(old, payload), Ok(true)));
    if unchanged && visible_names_exist(target, payload) {
        return Ok(false);
    }
    let fresh = new_timestamped_dir(target)?;
    write_files(&fresh, payload)?;
    set_permissions(&fresh)?;
    let new_link = target.join(NEW_DATA);
    remove_if_present(&new_link)?;
    let name =
        fresh.file_name().ok_or_else(|| Error::Invalid("timestamped directory has no name".to_owned()))?;
    symlink(name, &new_link).map_err(|e| Error::io("symlink", &new_link, e))?;
    fs::rename(&new_link, &data_link).map_err(|e| Error::io("rename", &data_link, e))?;
    link_visible_names(target, payload)?;
    remove_stale(target, payload, &fresh)?;
    Ok(true)
}

/// Returns whether a set of files has been written to `target` before.
pub fn is_written(target: &Path) -> bool {
    target.join(DATA).is_dir()
}

/// Checks that a path is relative, has no `..` components and does not start with `..` (names reserved for
/// this writer).
fn validate(path: &str) -> Result<(), Error> {
    let parsed = Path::new(path);
    let plain = !path.is_empty() && parsed.components().all(|part| matches!(part, Component::Normal(_)));
    if plain && !path.starts_with("..") {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "invalid path: must be relative and must not contain or start with '..': {path}"
    )))
}

/// Returns whether the directory holds exactly these files with these contents. Modes are not compared:
/// fsGroup may have added bits to them.
fn holds(dir: &Path, payload: &Payload) -> std::io::Result<bool> {
    let mut on_disk = BTreeSet::new();
    collect_files(dir, dir, &mut on_disk)?;
    if on_disk.len() != payload.len() || !on_disk.iter().all(|path| payload.contains_key(path)) {
        return Ok(false);
    }
    for (path, file) in payload {
        if fs::read(dir.join(path))? != file.data {
            return Ok(false);
        }
    }
    Ok(true)
}

fn collect_files(root: &Path, dir: &Path, found: &mut BTreeSet<String>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_files(root, &entry.path(), found)?;
        } else if let Ok(relative) = entry.path().strip_prefix(root) {
            found.insert(relative.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

fn visible_names_exist(target: &Path, payload: &Payload) -> bool {
    visible_names(payload).iter().all(|name| target.join(name).symlink_metadata().is_ok())
}

/// Returns the first component of every path: the names a container sees in the volume's root.
fn visible_names(payload: &Payload) -> BTreeSet<String> {
    payload.keys().filter_map(|path| path.split('/').next()).map(str::to_owned).collect()
}

fn new_timestamped_dir(target: &Path) -> Result<PathBuf, Error> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let prefix = format!("..{}.", now.as_nanos());
    let dir = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(target)
        .map_err(|e| Error::io("make directory in", target, e))?
        .keep();
    // Mode 0755 gives every user of the pod access to the directory; the files have their own modes.
    set_mode(&dir, 0o755)?;
    Ok(dir)
}

fn write_files(dir: &Path, payload: &Payload) -> Result<(), Error> {
    for (path, file) in payload {
        let full = dir.join(path);
        if let Some(parent) = full.parent().filter(|parent| *parent != dir) {
            fs::create_dir_all(parent).map_err(|e| Error::io("make directory", parent, e))?;
        }
        let mut handle = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&full)
            .map_err(|e| Error::io("create", &full, e))?;
        handle.write_all(&file.data).map_err(|e| Error::io("write", &full, e))?;
        if let Some(owner) = file.owner {
            std::os::unix::fs::chown(&full, Some(owner), None).map_err(|e| Error::io("chown", &full, e))?;
        }
        set_mode(&full, file.mode)?;
    }
    Ok(())
}

fn link_visible_names(target: &Path, payload: &Payload) -> Result<(), Error> {
    for name in visible_names(payload) {
        let link = target.join(&name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new(DATA).join(&name), &link).map_err(|e| Error::io("symlink", &link, e))?;
        }
    }
    Ok(())
}

/// Removes names that are no longer in the payload, and every timestamped directory except `keep`.
fn remove_stale(target: &Path, payload: &Payload, keep: &Path) -> Result<(), Error> {
    let names = visible_names(payload);
    for entry in fs::read_dir(target).map_err(|e| Error::io("list", target, e))? {
        let entry = entry.map_err(|e| Error::io("list", target, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if name == DATA || path == keep || names.contains(&name) {
            continue;
        }
        let is_dir = entry.file_type().map_err(|e| Error::io("stat", &path, e))?.is_dir();
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|e| Error::io("remove", &path, e))?;
    }
    Ok(())
}

fn remove_if_present(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|e| Error::io("chmod", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, data)| {
                (
                    (*path).to_owned(),
                    FileProjection { data: data.as_bytes().to_vec(), mode: 0o640, owner: None },
                )
            })
            .collect()
    }

    #[test]
    fn a_new_set_replaces_the_old_one_through_the_data_link() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &payload(&[("a", "1"), ("sub/b", "2")]), |_| Ok(())).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("sub/b")).unwrap(), "2");
        assert_eq!(fs::read_link(dir.path().join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        let first = fs::read_link(dir.path().join(DATA)).unwrap();

        assert!(write(dir.path(), &payload(&[("a", "3")]), |_| Ok(())).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "3");
        assert!(dir.path().join("sub").symlink_metadata().is_err(), "a name that left the set is gone");
        assert!(!dir.path().join(first).exists(), "the old directory is gone");
    }

    #[test]
    fn an_equal_set_touches_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let files = payload(&[("a", "1")]);
        write(dir.path(), &files, |_| Ok(())).unwrap();
        let link = fs::read_link(dir.path().join(DATA)).unwrap();
        assert!(!write(dir.path(), &files, |_| Ok(())).unwrap());
        assert_eq!(fs::read_link(dir.path().join(DATA)).unwrap(), link);
    }

    #[test]
    fn an_empty_set_still_makes_the_data_link() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &Payload::new(), |_| Ok(())).unwrap());
        assert!(dir.path().join(DATA).exists());
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc/passwd", "a/../../b", "..data", ""] {
            assert!(write(dir.path(), &payload(&[(path, "x")]), |_| Ok(())).is_err(), "{path}");
        }
    }
}
