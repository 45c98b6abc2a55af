//! Properties of the host: labels, capacity, kernel and operating system.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use nix::sys::statvfs::statvfs;

use crate::config::AgentConfig;
use crate::context::Context;
use crate::resources::amount;

/// Returns Go's name of the host's architecture.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// Returns the node's labels: the standard ones and the configured ones.
pub fn labels(config: &AgentConfig) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    labels.extend(config.labels.clone());
    labels
}

/// Computes the capacity from `/proc` and the disk; configured values take precedence.
pub fn capacity(config: &AgentConfig) -> BTreeMap<String, Quantity> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory_kib = proc_value("/proc/meminfo", "MemTotal:").unwrap_or(0);
    let disk = statvfs(&config.root_dir).map_or(0, |s| s.blocks().saturating_mul(s.fragment_size()) / 1024);
    let mut capacity: BTreeMap<String, Quantity> = [
        ("cpu", cpus.to_string()),
        ("memory", format!("{memory_kib}Ki")),
        ("ephemeral-storage", format!("{disk}Ki")),
        ("hugepages-1Gi", "0".to_owned()),
        ("hugepages-2Mi", "0".to_owned()),
        ("pods", config.max_pods.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), Quantity(value)))
    .collect();
    capacity.extend(config.capacity.iter().map(|(name, value)| (name.clone(), Quantity(value.clone()))));
    capacity
}

/// Subtracts the reserved resources from the capacity.
pub fn allocatable(
    config: &AgentConfig,
    capacity: &BTreeMap<String, Quantity>,
) -> BTreeMap<String, Quantity> {
    let left = |name: &String, total: &Quantity| {
        let Some(reserved) = config.reserved.get(name) else { return total.clone() };
        let left = (amount(name, total) - amount(name, &Quantity(reserved.clone()))).max(0);
        Quantity(if name == "cpu" { format!("{left}m") } else { left.to_string() })
    };
    capacity.iter().map(|(name, total)| (name.clone(), left(name, total))).collect()
}

/// Returns the first number after a key in a `/proc` file; `None` if there is none.
fn proc_value(path: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    line[key.len()..].split_whitespace().next()?.parse().ok()
}

/// Free space of a file system.
#[derive(Clone, Copy, Debug)]
pub struct FileSystemSpace {
    /// Bytes that unprivileged users can still use, and bytes they can use in total.
    pub bytes: (u64, u64),
    /// Free inodes and total inodes; both 0 if the file system has no fixed number.
    pub inodes: (u64, u64),
}

impl FileSystemSpace {
    /// Returns whether less than these percentages of bytes or inodes are free.
    pub fn below(&self, bytes_percent: u64, inodes_percent: u64) -> bool {
        let low = |(free, total): (u64, u64), percent| free < total / 100 * percent;
        low(self.bytes, bytes_percent) || low(self.inodes, inodes_percent)
    }
}

/// Returns the free space of the file system that holds `path`; `None` if it cannot be read.
pub fn disk(path: &Path) -> Option<FileSystemSpace> {
    let stat = statvfs(path).ok()?;
    let block = stat.fragment_size();
    let reserved = stat.blocks_free().saturating_sub(stat.blocks_available());
    let total = stat.blocks().saturating_sub(reserved);
    Some(FileSystemSpace {
        bytes: (stat.blocks_available().saturating_mul(block), total.saturating_mul(block)),
        inodes: (stat.files_available(), stat.files()),
    })
}

/// Returns the available bytes of memory, and the free space of the root directory's disk; `None` for values
/// that cannot be read.
pub fn pressure(config: &AgentConfig) -> (Option<u64>, Option<FileSystemSpace>) {
    let memory = proc_value("/proc/meminfo", "MemAvailable:").map(|kib| kib * 1024);
    (memory, disk(&config.root_dir))
}

/// Returns how many more tasks the host can have, and the limit; `None` if `/proc` cannot be read.
pub fn free_pids() -> Option<(u64, u64)> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limit = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
    // The fourth field of `/proc/loadavg` is RUNNING/ALL.
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let tasks = load.split_whitespace().nth(3)?.split_once('/')?.1.parse::<u64>().ok()?;
    Some((limit.saturating_sub(tasks), limit))
}

/// Collects the system information for `status.nodeInfo`.
pub fn system(context: &Context) -> NodeSystemInfo {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let os_image = fs::read_to_string("/etc/os-release")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
            Some(line.trim_matches('"').to_owned())
        })
        .unwrap_or_else(|| "Linux".to_owned());
    let machine_id = read("/etc/machine-id");
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: format!("{}://{}", context.runtime_name, context.runtime_version),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: context.config.version.clone(),
        system_uuid: Some(read("/sys/class/dmi/id/product_uuid"))
            .filter(|id| !id.is_empty())
            .unwrap_or_else(|| machine_id.clone()),
        machine_id,
        operating_system: "linux".to_owned(),
        os_image,
        ..Default::default()
    }
}
