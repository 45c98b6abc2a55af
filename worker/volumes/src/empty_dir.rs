//! The `emptyDir` volume: a directory that lives as long as its pod, on disk or in memory.

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;

use crate::atomic_writer::set_mode;
use crate::{Error, amounts, tmpfs};

/// kubelet's directory name of this type.
pub const PLUGIN: &str = "kubernetes.io~empty-dir";

/// Makes the directory (0777 whatever the umask); medium `Memory` is a tmpfs of at most `sizeLimit`.
pub fn set_up(path: &Path, source: &EmptyDirVolumeSource) -> Result<(), Error> {
    let fresh = !path.exists();
    fs::create_dir_all(path).map_err(|e| Error::io("make directory", path, e))?;
    match source.medium.as_deref().unwrap_or_default() {
        "" => {
            if fresh {
                set_mode(path, 0o777)?;
            }
            Ok(())
        }
        "Memory" => tmpfs::mount_tmpfs(path, source.size_limit.as_ref().and_then(amounts::whole)),
        other => Err(Error::Invalid(format!("unknown storage medium \"{other}\""))),
    }
}
