//! Control groups of pods and containers, version 1 (a hierarchy per controller) and 2.
//!
//! libcontainer puts containers into their cgroups; this module finds those cgroups again, to read usage, to
//! change limits, to kill leftover processes and to remove the cgroups. The runtime uses it for statistics
//! and updates, the shim when a container ends.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

const MOUNT: &str = "/sys/fs/cgroup";
/// Number of attempts to kill every process of a cgroup, and the pause between two attempts.
const EMPTY_STEPS: u32 = 250;
const EMPTY_STEP: Duration = Duration::from_millis(20);
/// Maximum number of checks whether the kernel has frozen a cgroup, and the pause between two; after that its
/// processes are killed even if not frozen.
const FREEZE_STEPS: u32 = 20;
const FREEZE_STEP: Duration = Duration::from_millis(1);

/// Resource usage of a cgroup; figures that the kernel does not give are 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct CgroupUsage {
    /// CPU time since the cgroup was made, in nanoseconds.
    pub cpu_nanoseconds: u64,
    /// Memory in bytes, page cache included.
    pub memory_bytes: u64,
    /// Working set in bytes: memory less the inactive file cache, which the kernel reclaims first.
    pub working_set_bytes: u64,
    /// Anonymous memory in bytes.
    pub rss_bytes: u64,
    /// Memory limit in bytes; 0 if there is none.
    pub memory_limit_bytes: u64,
    /// Number of page faults.
    pub page_faults: u64,
    /// Number of page faults that read from disk.
    pub major_page_faults: u64,
    /// Swap in bytes.
    pub swap_bytes: u64,
    /// Number of processes.
    pub processes: u64,
}

/// Resource limits to set; `None` and 0 leave the present limit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CgroupLimits {
    /// CPU shares as cgroup version 1 counts them, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// CPU quota in microseconds per period; -1 for no limit.
    pub cpu_quota: Option<i64>,
    /// CPU period in microseconds.
    pub cpu_period: Option<u64>,
    /// Memory limit in bytes; -1 for no limit.
    pub memory: Option<i64>,
    /// CPUs that the cgroup may use, as a list of ranges.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that the cgroup may use, as a list of ranges.
    pub cpuset_mems: Option<String>,
}

/// Cgroup hierarchies that this machine has mounted.
#[derive(Clone, Debug)]
pub enum Hierarchies {
    /// Version 1: mount point of each controller.
    V1(BTreeMap<String, PathBuf>),
    /// Version 2: mount point of the single hierarchy.
    V2(PathBuf),
}

impl Hierarchies {
    /// Finds the hierarchies that are mounted below `/sys/fs/cgroup`.
    pub fn detect() -> io::Result<Self> {
        if statfs(MOUNT).map_err(io::Error::from)?.filesystem_type() == CGROUP2_SUPER_MAGIC {
            return Ok(Self::V2(MOUNT.into()));
        }
        let mut controllers = BTreeMap::new();
        for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let Some(point) = mount.split(' ').nth(4) else { continue };
            let mut fields = filesystem.split(' ');
            if fields.next() != Some("cgroup") || !point.starts_with(MOUNT) {
                continue;
            }
            for option in fields.nth(1).unwrap_or_default().split(',') {
                let known = matches!(
                    option,
                    "cpu"
                        | "cpuacct"
                        | "cpuset"
                        | "memory"
                        | "devices"
                        | "freezer"
                        | "blkio"
                        | "pids"
                        | "hugetlb"
                        | "perf_event"
                        | "net_cls"
                        | "net_prio"
                        | "rdma"
                        | "misc"
                );
                if known {
                    controllers.insert(option.to_owned(), PathBuf::from(point));
                }
            }
        }
        if controllers.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no cgroup hierarchy is mounted below /sys/fs/cgroup",
            ));
        }
        Ok(Self::V1(controllers))
    }

    /// Returns the cgroup at `path`, relative to the root of each hierarchy.
    pub fn cgroup(&self, path: &Path) -> Cgroup {
        let relative: PathBuf = path.components().filter(|c| matches!(c, Component::Normal(_))).collect();
        Cgroup { hierarchies: self.clone(), path: relative }
    }
}

/// One cgroup, in all hierarchies.
#[derive(Clone, Debug)]
pub struct Cgroup {
    hierarchies: Hierarchies,
    path: PathBuf,
}

impl Cgroup {
    fn directories(&self) -> Vec<PathBuf> {
        match &self.hierarchies {
            Hierarchies::V2(mount) => vec![mount.join(&self.path)],
            Hierarchies::V1(controllers) => {
                let mut all: Vec<PathBuf> =
                    controllers.values().map(|mount| mount.join(&self.path)).collect();
                all.sort();
                all.dedup();
                all
            }
        }
    }

    /// Returns the cgroup's directory for one controller; `None` if version 1 has no hierarchy of it mounted.
    pub fn directory(&self, controller: &str) -> Option<PathBuf> {
        match &self.hierarchies {
            Hierarchies::V2(mount) => Some(mount.join(&self.path)),
            Hierarchies::V1(controllers) => controllers.get(controller).map(|mount| mount.join(&self.path)),
        }
    }

    /// Returns the controllers and the cgroup's directory for each; a single entry for version 2.
    pub fn controllers(&self) -> Vec<(String, PathBuf)> {
        match &self.hierarchies {
            Hierarchies::V2(mount) => vec![("unified".into(), mount.join(&self.path))],
            Hierarchies::V1(controllers) => {
                controllers.iter().map(|(name, mount)| (name.clone(), mount.join(&self.path))).collect()
            }
        }
    }

    /// Returns whether this is cgroup version 2 (one unified hierarchy).
    pub fn is_unified(&self) -> bool {
        matches!(self.hierarchies, Hierarchies::V2(_))
    }

    /// Returns whether the cgroup exists in any hierarchy.
    pub fn exists(&self) -> bool {
        self.directories().iter().any(|d| d.exists())
    }

    /// Creates the cgroup and its missing parents in every hierarchy. In `cpuset` each new level copies the
    /// CPUs and memory nodes of its parent; without them no process may enter it.
    pub fn create(&self) -> io::Result<()> {
        for directory in self.directories() {
            fs::create_dir_all(directory)?;
        }
        let mount = match &self.hierarchies {
            Hierarchies::V2(mount) => return enable_controllers(mount, &self.path),
            Hierarchies::V1(controllers) => match controllers.get("cpuset") {
                Some(mount) => mount,
                None => return Ok(()),
            },
        };
        let mut current = mount.clone();
        for part in self.path.components() {
            let above = current.clone();
            current.push(part);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if fs::read_to_string(current.join(file))?.trim().is_empty() {
                    fs::write(current.join(file), fs::read_to_string(above.join(file))?)?;
                }
            }
        }
        Ok(())
    }

    /// Returns the ids of the processes in the cgroup and its descendants.
    pub fn processes(&self) -> Vec<i32> {
        let mut all = Vec::new();
        for directory in self.directories() {
            collect_processes(&directory, &mut all);
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Kills every process in the cgroup and its descendants except the calling process; returns how many
    /// there were. Freezes them first where the kernel can, so that none escapes by forking.
    pub fn kill(&self) -> usize {
        let before = self.processes();
        if before.is_empty() {
            return 0;
        }
        let me = std::process::id();
        let is_me = |pid: &i32| u32::try_from(*pid).is_ok_and(|p| p == me);
        let frozen = !before.iter().any(is_me) && self.freeze(true);
        let all = self.processes();
        for pid in all.iter().filter(|pid| !is_me(pid)) {
            // A process that has ended meanwhile needs no signal.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if frozen {
            self.freeze(false);
        }
        all.len()
    }

    /// Kills every process in the cgroup and its descendants until none is left. Blocks. Fails with
    /// `ResourceBusy` if some survive [`EMPTY_STEPS`] attempts, because the kernel waits for a device
    /// or a file server in them.
    pub fn kill_all(&self) -> io::Result<()> {
        for _ in 0..EMPTY_STEPS {
            if self.kill() == 0 {
                return Ok(());
            }
            std::thread::sleep(EMPTY_STEP);
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "processes of the container cannot be killed"))
    }

    /// Freezes or thaws the cgroup and its descendants. Returns false if the kernel refused the request.
    fn freeze(&self, stop: bool) -> bool {
        let Some(directory) = self.directory("freezer") else { return false };
        let (file, word, reached) = match (self.is_unified(), stop) {
            (true, true) => ("cgroup.freeze", "1", "frozen 1"),
            (true, false) => ("cgroup.freeze", "0", "frozen 0"),
            (false, true) => ("freezer.state", "FROZEN", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED", "THAWED"),
        };
        if fs::write(directory.join(file), word).is_err() {
            return false;
        }
        let answer = directory.join(if self.is_unified() { "cgroup.events" } else { file });
        for _ in 0..FREEZE_STEPS {
            let state = fs::read_to_string(&answer).unwrap_or_default();
            if state.lines().any(|line| line.trim() == reached) {
                break;
            }
            std::thread::sleep(FREEZE_STEP);
        }
        // True also if the cgroup is only partly frozen, because the caller then has to thaw it.
        true
    }

    /// Removes the cgroup and its descendants from every hierarchy. Fails with `ResourceBusy` while it
    /// contains processes, including those that are still exiting.
    pub fn remove(&self) -> io::Result<()> {
        for directory in self.directories() {
            remove_directory(&directory)?;
        }
        Ok(())
    }

    /// Returns how many of the cgroup's processes the kernel's OOM killer has killed.
    pub fn oom_kills(&self) -> u64 {
        let Some(directory) = self.directory("memory") else { return 0 };
        let file = if self.is_unified() { "memory.events" } else { "memory.oom_control" };
        keyed(&directory.join(file)).get("oom_kill").copied().unwrap_or(0)
    }

    /// Reads the cgroup's present resource usage.
    pub fn usage(&self) -> CgroupUsage {
        match &self.hierarchies {
            Hierarchies::V1(_) => self.usage_v1(),
            Hierarchies::V2(mount) => usage_v2(&mount.join(&self.path)),
        }
    }

    fn usage_v1(&self) -> CgroupUsage {
        let memory = self.directory("memory").unwrap_or_default();
        let stat = keyed(&memory.join("memory.stat"));
        let get = |key: &str| stat.get(key).copied().unwrap_or(0);
        let used = number(&memory.join("memory.usage_in_bytes"));
        let limit = number(&memory.join("memory.limit_in_bytes"));
        let tasks = self.directory("pids").unwrap_or_default();
        CgroupUsage {
            cpu_nanoseconds: number(&self.directory("cpuacct").unwrap_or_default().join("cpuacct.usage")),
            memory_bytes: used,
            working_set_bytes: used.saturating_sub(get("total_inactive_file")),
            rss_bytes: get("total_rss"),
            // Without a limit version 1 reports the largest multiple of the page size.
            memory_limit_bytes: if limit > 1 << 62 { 0 } else { limit },
            page_faults: get("total_pgfault"),
            major_page_faults: get("total_pgmajfault"),
            swap_bytes: get("total_swap"),
            processes: number(&tasks.join("pids.current")),
        }
    }

    /// Changes the limits of an existing cgroup.
    pub fn update(&self, limits: &CgroupLimits) -> io::Result<()> {
        match &self.hierarchies {
            Hierarchies::V1(_) => self.update_v1(limits),
            Hierarchies::V2(mount) => update_v2(&mount.join(&self.path), limits),
        }
    }

    fn update_v1(&self, limits: &CgroupLimits) -> io::Result<()> {
        let file = |controller: &str, file: &str| {
            let directory = self.directory(controller);
            directory
                .map(|d| d.join(file))
                .ok_or_else(|| io::Error::other(format!("no {controller} controller")))
        };
        if let Some(shares) = limits.cpu_shares {
            fs::write(file("cpu", "cpu.shares")?, shares.to_string())?;
        }
        if let Some(period) = limits.cpu_period.filter(|p| *p != 0) {
            fs::write(file("cpu", "cpu.cfs_period_us")?, period.to_string())?;
        }
        if let Some(quota) = limits.cpu_quota {
            fs::write(file("cpu", "cpu.cfs_quota_us")?, quota.to_string())?;
        }
        if let Some(memory) = limits.memory {
            let swap = file("memory", "memory.memsw.limit_in_bytes")?;
            let plain = file("memory", "memory.limit_in_bytes")?;
            // The limit of memory plus swap may never be below that of memory: raise it first, lower it last.
            if !swap.exists() {
                fs::write(plain, memory.to_string())?;
            } else if fs::write(&plain, memory.to_string()).is_ok() {
                fs::write(swap, memory.to_string())?;
            } else {
                fs::write(&swap, memory.to_string())?;
                fs::write(plain, memory.to_string())?;
            }
        }
        if let Some(cpus) = &limits.cpuset_cpus {
            fs::write(file("cpuset", "cpuset.cpus")?, cpus)?;
        }
        if let Some(mems) = &limits.cpuset_mems {
            fs::write(file("cpuset", "cpuset.mems")?, mems)?;
        }
        Ok(())
    }
}

/// Enables the controllers that pods need at every level of `path` above the last.
fn enable_controllers(mount: &Path, path: &Path) -> io::Result<()> {
    let mut current = mount.to_owned();
    let parts: Vec<_> = path.components().collect();
    for part in parts.iter().take(parts.len().saturating_sub(1)) {
        for controller in ["cpu", "cpuset", "memory", "pids"] {
            let available = fs::read_to_string(current.join("cgroup.controllers"))?;
            if available.split_whitespace().any(|c| c == controller) {
                fs::write(current.join("cgroup.subtree_control"), format!("+{controller}"))?;
            }
        }
        current.push(part);
    }
    Ok(())
}

fn collect_processes(directory: &Path, into: &mut Vec<i32>) {
    // A cgroup that no longer exists has no processes.
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    into.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect_processes(&entry.path(), into);
        }
    }
}

fn remove_directory(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_directory(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn usage_v2(directory: &Path) -> CgroupUsage {
    let stat = keyed(&directory.join("memory.stat"));
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    let used = number(&directory.join("memory.current"));
    let cpu = keyed(&directory.join("cpu.stat")).get("usage_usec").copied().unwrap_or(0);
    CgroupUsage {
        cpu_nanoseconds: cpu.saturating_mul(1000),
        memory_bytes: used,
        working_set_bytes: used.saturating_sub(get("inactive_file")),
        rss_bytes: get("anon"),
        memory_limit_bytes: number(&directory.join("memory.max")),
        page_faults: get("pgfault"),
        major_page_faults: get("pgmajfault"),
        swap_bytes: number(&directory.join("memory.swap.current")),
        processes: number(&directory.join("pids.current")),
    }
}

fn update_v2(directory: &Path, limits: &CgroupLimits) -> io::Result<()> {
    if let Some(shares) = limits.cpu_shares.filter(|s| *s >= 2) {
        // Converts CPU shares (2 to 262144) to a version 2 weight (1 to 10000), as runc and the kubelet do.
        let weight = 1 + ((shares.min(262_144) - 2) * 9999) / 262_142;
        fs::write(directory.join("cpu.weight"), weight.to_string())?;
    }
    if let Some(quota) = limits.cpu_quota {
        let period = limits.cpu_period.filter(|p| *p != 0).unwrap_or(100_000);
        let quota = if quota > 0 { quota.to_string() } else { "max".into() };
        fs::write(directory.join("cpu.max"), format!("{quota} {period}"))?;
    }
    if let Some(memory) = limits.memory {
        let value = if memory > 0 { memory.to_string() } else { "max".into() };
        fs::write(directory.join("memory.max"), value)?;
    }
    if let Some(cpus) = &limits.cpuset_cpus {
        fs::write(directory.join("cpuset.cpus"), cpus)?;
    }
    if let Some(mems) = &limits.cpuset_mems {
        fs::write(directory.join("cpuset.mems"), mems)?;
    }
    Ok(())
}

fn number(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn keyed(path: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)))
        .collect()
}
