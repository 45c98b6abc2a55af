//! What the runtime knows of a pod's sandbox, and the making and unmaking of what the sandbox is: namespaces
//! held by bind mounts, a shared memory file system and a few files.

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

/// A sandbox as asked for and what became of it, on disk from its making to its removal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub id: String,
    pub config: v1::PodSandboxConfig,
    pub runtime_handler: String,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    pub ready: bool,
    /// Whether the network was attached and not yet detached.
    pub attached: bool,
    pub addresses: Vec<String>,
    /// The pod's cgroup, relative to the hierarchies' roots.
    pub cgroup: PathBuf,
    /// Whether the cgroup was not there before and is therefore removed with the sandbox.
    pub own_cgroup: bool,
}

impl SandboxRecord {
    /// Which namespaces the pod shares with the host.
    pub fn namespaces(&self) -> v1::NamespaceOption {
        let linux = self.config.linux.as_ref();
        let context = linux.and_then(|l| l.security_context.as_ref());
        context.and_then(|c| c.namespace_options.clone()).unwrap_or_default()
    }

    pub fn host_network(&self) -> bool {
        self.namespaces().network() == NamespaceMode::Node
    }

    /// The name that processes in the pod see.
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

/// A sandbox that this runtime knows, with its shim and its locks.
pub(crate) struct Sandbox {
    pub record: std::sync::Mutex<SandboxRecord>,
    pub shim: ShimClient,
    /// Held while the record is written to disk, so that writes keep their order.
    pub saving: Mutex<()>,
    /// Held while the sandbox is started, stopped or removed.
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

/// Makes the sandbox's namespaces, file systems and files below `state`. Blocks. What was
/// made before an error is left to [`unmake`].
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

/// Takes down what [`make`] made. Blocks. Succeeds when nothing is left to take down.
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

/// Unmounts everything that is mounted at `path`.
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
