//! Paths of a pod's files on the node: kubelet's layout, so that tools written for kubelet find them.

use std::path::{Path, PathBuf};

/// The directories of one pod, `ROOT/pods/UID` and below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLayout {
    pod_dir: PathBuf,
}

impl PodLayout {
    /// Creates the layout of the pod with this UID below the agent's root directory.
    pub fn new(root: &Path, uid: &str) -> Self {
        Self { pod_dir: root.join("pods").join(uid) }
    }

    /// Returns the pod's directory, `ROOT/pods/UID`.
    pub fn pod_dir(&self) -> &Path {
        &self.pod_dir
    }

    /// Returns the directory of one volume; `plugin` is kubelet's directory name, such as
    /// `kubernetes.io~configmap`.
    pub fn volume(&self, plugin: &str, name: &str) -> PathBuf {
        self.pod_dir.join("volumes").join(plugin).join(name)
    }

    /// Returns the place of the bind mount for mount number `index` of a container, which uses a sub-path of
    /// `volume`.
    pub fn subpath(&self, volume: &str, container: &str, index: usize) -> PathBuf {
        self.pod_dir.join("volume-subpaths").join(volume).join(container).join(index.to_string())
    }

    /// Returns the path of the managed hosts file.
    pub fn etc_hosts(&self) -> PathBuf {
        self.pod_dir.join("etc-hosts")
    }

    /// Returns the directory of a container's termination message files.
    pub fn container(&self, name: &str) -> PathBuf {
        self.pod_dir.join("containers").join(name)
    }
}

/// Lists the UIDs of the pods that have a directory below `root`, for the clean-up after a crash.
pub fn pod_dirs(root: &Path) -> std::io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(root.join("pods")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut uids = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string() {
            uids.push(name);
        }
    }
    uids.sort();
    Ok(uids)
}
