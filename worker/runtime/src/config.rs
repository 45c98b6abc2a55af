//! What a worker tells the runtime when it starts it: directories, the cgroup prefix, the
//! program that is re-executed as shim, registries and bounds. Built by `worker/node`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The configuration of one node's runtime.
///
/// Nothing is shared between runtimes but the kernel: two nodes on one machine need
/// different `root`, `state`, `socket` and `cgroup_root`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuntimeConfig {
    /// Persistent data: images, layers, writable layers and the records of pods and containers.
    pub root: PathBuf,
    /// Volatile data: namespaces held by bind mounts, bundles, sockets. May be a tmpfs.
    pub state: PathBuf,
    /// The unix socket that CRI and `ephor.image.v1.Images` are served on.
    pub socket: PathBuf,
    /// Prefix of every cgroup made here, relative to each hierarchy's root (`/ephor/worker1`).
    /// A cgroup parent asked for over CRI is put below it unless it lies there already.
    pub cgroup_root: PathBuf,
    /// The program that understands `EXE shim ...`, usually the running binary.
    pub shim_exe: PathBuf,
    /// How registries are reached.
    #[serde(default)]
    pub registries: Registries,
    /// Where the streaming server (exec, attach, port-forward) listens; a local address.
    #[serde(default = "default_streaming")]
    pub streaming: SocketAddr,
    /// Bounds on what an image may hold.
    #[serde(default)]
    pub limits: ImageLimits,
}

fn default_streaming() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)
}

impl RuntimeConfig {
    /// A configuration with the defaults of everything that has one.
    pub fn new(
        root: PathBuf,
        state: PathBuf,
        socket: PathBuf,
        cgroup_root: PathBuf,
        shim_exe: PathBuf,
    ) -> Self {
        Self {
            root,
            state,
            socket,
            cgroup_root,
            shim_exe,
            registries: Registries::default(),
            streaming: default_streaming(),
            limits: ImageLimits::default(),
        }
    }
}

/// How registries are reached.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Registries {
    /// `host[:port]` of registries spoken to over plain HTTP. Loopback addresses always are.
    #[serde(default)]
    pub insecure: Vec<String>,
    /// Registry host to the one that is asked in its place.
    #[serde(default)]
    pub mirrors: BTreeMap<String, String>,
    /// PEM files of additional certificate authorities.
    #[serde(default)]
    pub certificate_authorities: Vec<PathBuf>,
}

/// Bounds on what an image may hold, against archives made to fill a disk or the memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageLimits {
    /// The largest manifest, index or configuration, in bytes.
    pub document_bytes: u64,
    /// The largest single layer after decompression, in bytes.
    pub layer_bytes: u64,
    /// The most entries in one layer.
    pub layer_entries: u64,
    /// The most bytes that one image may take on disk: its layers unpacked, and beside them its blobs as they
    /// are fetched. Whatever the bound, a part of the disk stays free.
    pub image_bytes: u64,
    /// The most files of one image's layers.
    pub image_entries: u64,
    /// The most layers in one image.
    pub layers: usize,
    /// The largest archive accepted by a load, in bytes.
    pub archive_bytes: u64,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            document_bytes: 8 << 20,
            layer_bytes: 64 << 30,
            layer_entries: 4_000_000,
            image_bytes: 64 << 30,
            image_entries: 8_000_000,
            layers: 250,
            archive_bytes: 64 << 30,
        }
    }
}
