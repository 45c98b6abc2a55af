//! The `hostPath` volume: a path of the node, checked or created according to its `type`.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use crate::Error;

/// Checks the path's type, creates the path for the types `...OrCreate`, and returns it.
pub fn set_up(source: &HostPathVolumeSource) -> Result<PathBuf, Error> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let existing = fs::metadata(&path).ok();
    match (kind, existing) {
        ("", _) => Ok(path),
        ("DirectoryOrCreate", None) => {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&path)
                .map_err(|e| Error::io("make directory", &path, e))?;
            Ok(path)
        }
        ("FileOrCreate", None) => {
            fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .open(&path)
                .map_err(|e| Error::io("create", &path, e))?;
            Ok(path)
        }
        (kind, existing) => check(kind, &path, existing.as_ref()).map(|()| path),
    }
}

fn check(kind: &str, path: &Path, found: Option<&fs::Metadata>) -> Result<(), Error> {
    let matches = |test: fn(&fs::Metadata) -> bool| found.is_some_and(test);
    let (fits, what) = match kind {
        "Directory" | "DirectoryOrCreate" => (matches(fs::Metadata::is_dir), "directory"),
        "File" | "FileOrCreate" => (matches(fs::Metadata::is_file), "file"),
        "Socket" => (matches(|m| m.file_type().is_socket()), "socket file"),
        "CharDevice" => (matches(|m| m.file_type().is_char_device()), "character device"),
        "BlockDevice" => (matches(|m| m.file_type().is_block_device()), "block device"),
        other => return Err(Error::Invalid(format!("{other} is an invalid volume type"))),
    };
    if fits {
        return Ok(());
    }
    Err(Error::Invalid(format!("hostPath type check failed: {} is not a {what}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_missing_paths_made() {
        let dir = tempfile::tempdir().unwrap();
        let source = |name: &str, kind: &str| HostPathVolumeSource {
            path: dir.path().join(name).to_string_lossy().into_owned(),
            type_: Some(kind.to_owned()),
        };
        assert!(set_up(&source("a", "Directory")).is_err());
        assert!(set_up(&source("a", "DirectoryOrCreate")).unwrap().is_dir());
        assert!(set_up(&source("a", "File")).is_err());
        assert!(set_up(&source("f", "FileOrCreate")).unwrap().is_file());
        assert!(set_up(&source("missing", "")).is_ok());
    }
}
