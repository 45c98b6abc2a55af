//! Layout of the runtime's files below the two directories of its configuration.

use std::path::{Path, PathBuf};

/// Paths below the directories of one runtime.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub root: PathBuf,
    pub state: PathBuf,
}

impl Paths {
    /// Returns the directory of the image store: blobs, unpacked layers and the table of images.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Returns the directory of a pod's record, which survives a reboot.
    pub fn sandbox_root(&self, id: &str) -> PathBuf {
        self.sandboxes_root().join(id)
    }

    pub fn sandboxes_root(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    /// Returns the directory of a container's record, exit status and writable layer, which survive a reboot.
    pub fn container_root(&self, id: &str) -> PathBuf {
        self.containers_root().join(id)
    }

    pub fn containers_root(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// Returns the directory of a pod's namespaces, shm, resolv.conf and shim socket.
    pub fn sandbox_state(&self, id: &str) -> PathBuf {
        self.sandboxes_state().join(id)
    }

    pub fn sandboxes_state(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    /// Returns a container's bundle: plan, specification, mount point of the root file system.
    pub fn container_state(&self, id: &str) -> PathBuf {
        self.state.join("containers").join(id)
    }

    /// Returns the directory where libcontainer keeps the state of every container.
    pub fn libcontainer(&self) -> PathBuf {
        self.state.join("libcontainer")
    }
}

/// File names below a pod's directories.
pub(crate) mod sandbox_file {
    pub const RECORD: &str = "sandbox.json";
    pub const SHIM_PLAN: &str = "shim.json";
    pub const SHIM_SOCKET: &str = "shim.sock";
    pub const SHIM_PID: &str = "shim.pid";
    pub const SHIM_LOG: &str = "shim.log";
    pub const PID_HOLDER: &str = "pid-holder.pid";
    pub const RESOLV_CONF: &str = "resolv.conf";
    pub const HOSTNAME: &str = "hostname";
    pub const HOSTS: &str = "hosts";
    pub const SHM: &str = "shm";
    pub const NAMESPACES: &str = "ns";
}

/// File names below a container's directories.
pub(crate) mod container_file {
    pub const RECORD: &str = "container.json";
    /// Empty file that exists from the moment a shim was asked to start the container.
    pub const STARTING: &str = "starting";
    pub const STARTED: &str = "started.json";
    pub const EXIT: &str = "exit.json";
    pub const PLAN: &str = "launch.json";
    pub const LAUNCHED: &str = "launched.json";
    pub const SPEC: &str = "config.json";
    pub const ROOTFS: &str = "rootfs";
    pub const UPPER: &str = "upper";
    pub const WORK: &str = "work";
    pub const VOLUMES: &str = "volumes";
}

/// Returns a path for `directory/name` that goes through an open descriptor, so that a unix socket's path
/// stays below the kernel's limit of 108 bytes. Valid while `directory` is open.
pub(crate) fn short_path(directory: &std::fs::File, name: &str) -> PathBuf {
    use std::os::fd::AsRawFd;
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)
}
