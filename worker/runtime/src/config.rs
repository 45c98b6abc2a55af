//! The runtime's configuration: directories, cgroup prefix, the program that is run as shim, registries and
//! limits. Built by `worker/node`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Configuration of one node's runtime.
///
/// Runtimes on one machine share only the kernel: two nodes on one machine need different `root`, `state`,
/// `socket` and `cgroup_root`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuntimeConfig {
    /// Directory of persistent data: images, layers, writable layers and the records of pods and containers.
    pub root: PathBuf,
    /// Directory of volatile data: namespaces held by bind mounts, bundles, sockets. May be on a tmpfs.
    pub state: PathBuf,
    /// Path of the unix socket that serves CRI and `ephor.image.v1.Images`.
    pub socket: PathBuf,
    /// Prefix of every cgroup that the runtime creates, relative to each hierarchy's root (`/ephor/worker1`).
    /// A cgroup parent from a CRI request is placed below the prefix unless it already is.
    pub cgroup_root: PathBuf,
    /// Program that implements `EXE shim ...`, usually the running binary.
    pub shim_exe: PathBuf,
    /// Settings for reaching registries.
    #[serde(default)]
    pub registries: Registries,
    /// Address on which the streaming server (exec, attach, port-forward) listens; a local one.
    #[serde(default = "default_streaming")]
    pub streaming: SocketAddr,
    /// Limits on the size of an image.
    #[serde(default)]
    pub limits: ImageLimits,
}

fn default_streaming() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)
}

impl RuntimeConfig {
    /// Makes a configuration with defaults for all other settings.
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

/// Settings for reaching registries.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Registries {
    /// Registries (`host[:port]`) that are reached over plain HTTP. Loopback addresses always are.
    #[serde(default)]
    pub insecure: Vec<String>,
    /// Mirror host to use in place of each registry host.
    #[serde(default)]
    pub mirrors: BTreeMap<String, String>,
    /// Paths of PEM files with additional certificate authorities.
    #[serde(default)]
    pub certificate_authorities: Vec<PathBuf>,
}

/// Limits on the size of an image, against images made to fill a disk or the memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageLimits {
    /// Maximum size of a manifest, index or configuration, in bytes.
    pub document_bytes: u64,
    /// Maximum size of a single layer after decompression, in bytes.
    pub layer_bytes: u64,
    /// Maximum number of entries in one layer.
    pub layer_entries: u64,
    /// Maximum number of bytes of one image on disk: the unpacked layers, and separately the fetched blobs.
    /// Independent of this limit, a part of the disk stays free.
    pub image_bytes: u64,
    /// Maximum number of files in all layers of one image.
    pub image_entries: u64,
    /// Maximum number of layers in one image.
    pub layers: usize,
    /// Maximum size of an archive that can be loaded, in bytes.
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
