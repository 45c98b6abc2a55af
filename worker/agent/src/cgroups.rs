//! Pod-level cgroups: limits for the pod as a whole are set on its cgroup before its sandbox starts, and the
//! cgroup is removed when the pod is over. The runtime creates the containers' cgroups below it. Supports the
//! cgroupfs layout of v1 and v2.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_cri::v1::LinuxContainerResources;
use tracing::debug;

const ROOT: &str = "/sys/fs/cgroup";
const V1_CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "cpuset", "blkio"];

/// Returns the directories of a cgroup in all mounted hierarchies.
fn directories(cgroup: &str) -> Vec<PathBuf> {
    let relative = cgroup.trim_start_matches('/');
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return vec![root.join(relative)];
    }
    let Ok(hierarchies) = fs::read_dir(root) else { return Vec::new() };
    let mut found: Vec<PathBuf> = hierarchies
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
        .map(|entry| entry.path().join(relative))
        .collect();
    found.sort();
    found
}

/// Creates the pod's cgroup with its CPU and memory limits. Failures of a controller are only logged: the
/// containers' own limits apply anyway.
pub fn create(cgroup: &str, resources: &LinuxContainerResources) {
    let root = Path::new(ROOT);
    let relative = cgroup.trim_start_matches('/');
    if root.join("cgroup.controllers").exists() {
        create_v2(&root.join(relative), resources);
        return;
    }
    for controller in V1_CONTROLLERS {
        let hierarchy = root.join(controller);
        if !hierarchy.is_dir() {
            continue;
        }
        let dir = hierarchy.join(relative);
        if let Err(error) = fs::create_dir_all(&dir) {
            debug!(%error, dir = %dir.display(), "cannot make the pod's cgroup");
            continue;
        }
        match controller {
            "cpuset" => inherit_cpuset(&hierarchy, Path::new(relative)),
            "cpu" => {
                set(&dir.join("cpu.shares"), resources.cpu_shares);
                if resources.cpu_quota > 0 {
                    set(&dir.join("cpu.cfs_period_us"), resources.cpu_period);
                    set(&dir.join("cpu.cfs_quota_us"), resources.cpu_quota);
                }
            }
            "memory" if resources.memory_limit_in_bytes > 0 => {
                set(&dir.join("memory.limit_in_bytes"), resources.memory_limit_in_bytes);
            }
            _ => {}
        }
    }
}

fn create_v2(dir: &Path, resources: &LinuxContainerResources) {
    if let Err(error) = fs::create_dir_all(dir) {
        debug!(%error, dir = %dir.display(), "cannot make the pod's cgroup");
        return;
    }
    let mut above: Vec<&Path> = dir.ancestors().skip(1).take_while(|a| a.starts_with(ROOT)).collect();
    above.reverse();
    for parent in above {
        write(&parent.join("cgroup.subtree_control"), "+cpu +memory +pids");
    }
    // KEP-2254's conversion of shares to weight.
    let weight = 1 + (resources.cpu_shares.max(2) - 2) * 9999 / 262_142;
    set(&dir.join("cpu.weight"), weight);
    if resources.cpu_quota > 0 {
        write(&dir.join("cpu.max"), &format!("{} {}", resources.cpu_quota, resources.cpu_period));
    }
    if resources.memory_limit_in_bytes > 0 {
        set(&dir.join("memory.max"), resources.memory_limit_in_bytes);
    }
}

/// Copies cpus and mems from each parent down to the cgroup: a v1 cpuset accepts no process before both are
/// set.
fn inherit_cpuset(hierarchy: &Path, relative: &Path) {
    let mut dir = hierarchy.to_path_buf();
    for part in relative.components() {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = fs::read_to_string(dir.join(file)).unwrap_or_default();
            let own = dir.join(part).join(file);
            if fs::read_to_string(&own).is_ok_and(|v| v.trim().is_empty()) {
                write(&own, value.trim());
            }
        }
        dir.push(part);
    }
}

fn set(path: &Path, value: i64) {
    write(path, &value.to_string());
}

fn write(path: &Path, value: &str) {
    if let Err(error) = fs::write(path, value) {
        debug!(%error, path = %path.display(), value, "cgroup file not written");
    }
}

/// Removes the pod's cgroup and everything below it; cgroups that still hold a process remain.
pub fn remove(cgroup: &str) {
    if !cgroup.contains("/pod") {
        return;
    }
    for dir in directories(cgroup) {
        remove_below(&dir);
    }
}

fn remove_below(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.filter_map(|e| e.ok()) {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_below(&entry.path());
        }
    }
    if let Err(error) = fs::remove_dir(dir) {
        debug!(%error, dir = %dir.display(), "cgroup not removed");
    }
}
