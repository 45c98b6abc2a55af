//! The runtime's state of a pod's sandbox, and how a sandbox is created and removed: namespaces held by bind
//! mounts, a shared memory file system and a few files.

mod namespaces;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_cri::v1;
use k8s_cri::v1::NamespaceMode;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::paths::sandbox_file;
use crate::shim::client::ShimClient;

/// The requested configuration and the state of a sandbox, on disk from its creation to its removal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub id: String,
    pub config: v1::PodSandboxConfig,
    pub runtime_handler: String,
    /// Creation time in nanoseconds since 1970.
    pub created_at: i64,
    pub ready: bool,
    /// Whether the network is attached; set before attaching and cleared after detaching.
    pub attached: bool,
    pub addresses: Vec<String>,
    /// Path of the pod's cgroup, relative to the root of each hierarchy.
    pub cgroup: PathBuf,
    /// Whether the runtime created the cgroup and therefore removes it with the sandbox.
    pub own_cgroup: bool,
}

impl SandboxRecord {
    /// Returns which namespaces the pod shares with the host.
    pub fn namespaces(&self) -> v1::NamespaceOption {
        let linux = self.config.linux.as_ref();
        let context = linux.and_then(|l| l.security_context.as_ref());
        context.and_then(|c| c.namespace_options.clone()).unwrap_or_default()
    }

    pub fn host_network(&self) -> bool {
        self.namespaces().network() == NamespaceMode::Node
    }

    /// Returns the host name that processes in the pod see.
    pub fn hostname(&self) -> String {
        match self.config.hostname.is_empty() {
            false => self.config.hostname.clone(),
            true => nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        }
    }

    pub fn metadata(&self) -> v1::PodSandboxMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }
}

/// A sandbox of this runtime, with the client of its shim and its locks.
pub(crate) struct Sandbox {
    pub record: std::sync::Mutex<SandboxRecord>,
    pub shim: ShimClient,
    /// Held while the record is written to disk, so that writes happen in order.
    pub saving: Mutex<()>,
    /// Held while the sandbox is started, stopped or removed, or gets a new container.
    pub gate: Mutex<()>,
}

impl Sandbox {
    pub fn new(record: SandboxRecord, shim: ShimClient) -> Self {
        Self { record: std::sync::Mutex::new(record), shim, saving: Mutex::new(()), gate: Mutex::new(()) }
    }

    /// Returns a copy of the record.
    pub fn record(&self) -> SandboxRecord {
        self.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// Creates the sandbox's namespaces, file systems and files below `state`. Blocks. After an error call
/// [`unmake`] to remove what was created.
pub(crate) fn make(record: &SandboxRecord, state: &Path) -> io::Result<()> {
    crate::files::make_private_directory(state)?;
    namespaces::make(record, &state.join(sandbox_file::NAMESPACES))?;
    let dns = record.config.dns_config.clone().unwrap_or_default();
    let resolver = match dns == v1::DnsConfig::default() {
        true => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        false => resolv_conf(&dns),
    };
    fs::write(state.join(sandbox_file::RESOLV_CONF), resolver)?;
    fs::write(state.join(sandbox_file::HOSTNAME), format!("{}\n", record.hostname()))?;
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_else(|_| "127.0.0.1\tlocalhost\n".into());
    fs::write(state.join(sandbox_file::HOSTS), hosts)?;
    if record.namespaces().ipc() != NamespaceMode::Node {
        let shm = state.join(sandbox_file::SHM);
        fs::create_dir_all(&shm)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
        mount(Some("shm"), &shm, Some("tmpfs"), flags, Some("mode=1777,size=65536k"))?;
    }
    Ok(())
}

/// Removes everything that [`make`] created. Blocks. Succeeds if nothing is left to remove.
pub(crate) fn unmake(state: &Path) -> io::Result<()> {
    let mut mounts = vec![state.join(sandbox_file::SHM)];
    for entry in fs::read_dir(state.join(sandbox_file::NAMESPACES)).into_iter().flatten() {
        mounts.push(entry?.path());
    }
    for path in mounts {
        unmount(&path)?;
    }
    crate::files::remove_tree(&state.join(sandbox_file::NAMESPACES))
}

/// Unmounts all mounts at `path`, which may be stacked.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT | nix::Error::ENOTDIR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn resolv_conf(dns: &v1::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}
