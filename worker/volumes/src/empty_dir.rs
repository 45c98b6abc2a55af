//! The `emptyDir` volume: a directory that lives as long as its pod, on disk or in memory.

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;

use crate::atomic_writer::set_mode;
use crate::{Error, amounts, ownership, tmpfs};

/// kubelet's directory name for this volume type.
pub const PLUGIN: &str = "kubernetes.io~empty-dir";

/// Creates the directory (0777 whatever the umask) and gives it to `group` (fsGroup); medium `Memory` is a
/// tmpfs of at most `sizeLimit`. The volume is renamed into place, or mounted, with mode and group already
/// set. An existing volume is therefore complete and is never changed again, also after a restart: its
/// containers may have changed modes and groups in it. `fsGroupChangePolicy` has no effect on emptyDirs, as
/// in Kubernetes.
pub fn set_up(path: &Path, source: &EmptyDirVolumeSource, group: Option<i64>) -> Result<(), Error> {
    match source.medium.as_deref().unwrap_or_default() {
        "" if path.is_dir() => Ok(()),
        "" => make_directory(path, group),
        "Memory" => {
            fs::create_dir_all(path).map_err(|e| Error::io("make directory", path, e))?;
            tmpfs::mount_tmpfs(path, source.size_limit.as_ref().and_then(amounts::whole), group)
        }
        other => Err(Error::Invalid(format!("unknown storage medium \"{other}\""))),
    }
}

fn make_directory(path: &Path, group: Option<i64>) -> Result<(), Error> {
    // Volume names contain no dots, so this name cannot be another volume's.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = path.with_file_name(format!(".{name}.unfinished"));
    fs::create_dir_all(&unfinished).map_err(|e| Error::io("make directory", &unfinished, e))?;
    set_mode(&unfinished, 0o777)?;
    ownership::set(&unfinished, group, false)?;
    fs::rename(&unfinished, path).map_err(|e| Error::io("rename", &unfinished, e))
}
