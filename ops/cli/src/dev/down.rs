//! Takes a dev cluster down, whatever state it is in: processes, containers,
//! namespaces, links, cgroups. Uses the layout and what the kernel
//! shows, so that nothing is left after a crash in the middle of `up` or `down`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout::{DevNode, Layout, MAX_SPARES, MAX_WORKERS, Role, run_root};
use super::{bridge, chaos, namespace, process};

/// Time that processes get to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time that processes get to end after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(15);

/// Removes the whole cluster in `root`, including its data.
pub async fn down(root: &Path) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "`ephor dev down` needs root (try sudo)");
    // Without a layout (a crash before it was written), assume the largest possible cluster.
    let layout = Layout::load(root)?.unwrap_or(Layout {
        root: root.to_owned(),
        masters: 7,
        workers: MAX_WORKERS,
        api_port: 0,
        chaos: true,
        spares: MAX_SPARES,
        certificate_lifetime: None,
        max_token_expiration: None,
    });
    let nodes = layout.nodes();
    process::stop(process::BALANCER, PATIENCE)?;
    // Agents first, since they would restart the processes that are killed next.
    for node in &nodes {
        process::kill_now(&chaos::agent_name(node))?;
    }
    for role in [Role::Worker, Role::Master, Role::Spare] {
        for node in nodes.iter().filter(|n| n.role == role) {
            process::kill_now(&node.name)?;
        }
    }
    for node in &nodes {
        kill_all(node)?;
        bridge::detach(node)?;
        namespace::delete(node)?;
        remove_cgroups(&node.cgroup_root())?;
    }
    for node in &nodes {
        chaos::remove_disk(&layout, node)?;
    }
    remove_cgroups("/ephor-dev")?;
    bridge::delete_bridge()?;
    namespace::delete_directory()?;
    remove_tree(&run_root())?;
    remove_tree(root)
}

/// Kills all processes in a node's cgroups or namespaces (shims).
fn kill_all(node: &DevNode) -> Result<()> {
    let end = Instant::now() + KILL_PATIENCE;
    loop {
        let mut alive = in_cgroups(&node.cgroup_root());
        alive.extend(in_namespace(Path::new("/run/netns").join(node.namespace()).as_path(), "net"));
        alive.extend(in_namespace(&run_root().join("ns").join(&node.name), "mnt"));
        alive.remove(&std::process::id());
        if alive.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("processes of {} do not end: {alive:?}", node.name);
        }
        for pid in alive {
            match kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(e) => return Err(e).with_context(|| format!("killing {pid}")),
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the mount points of the cgroup hierarchies: each v1 controller, and v2.
fn hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut mounts: Vec<PathBuf> = table
        .lines()
        .filter(|line| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("cgroup")))
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .collect();
    mounts.sort();
    mounts.dedup();
    mounts
}

fn cgroup_directories(root: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        collect(&hierarchy.join(root.trim_start_matches('/')), &mut found);
    }
    found
}

/// Collects directories below `directory`, children before parents, as rmdir needs them.
fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect(&entry.path(), found);
        }
    }
    found.push(directory.to_owned());
}

fn in_cgroups(root: &str) -> BTreeSet<u32> {
    let files = cgroup_directories(root).into_iter().map(|d| d.join("cgroup.procs"));
    files
        .filter_map(|f| fs::read_to_string(f).ok())
        .flat_map(|text| text.lines().filter_map(|l| l.parse().ok()).collect::<Vec<u32>>())
        .filter(|pid| *pid != 0)
        .collect()
}

fn in_namespace(file: &Path, kind: &str) -> BTreeSet<u32> {
    use std::os::unix::fs::MetadataExt;
    let (Ok(wanted), Ok(own)) = (fs::metadata(file), fs::metadata(format!("/proc/self/ns/{kind}"))) else {
        return BTreeSet::new();
    };
    // A file that is no longer a mount is an ordinary file; the host's own namespace never counts.
    if (wanted.dev(), wanted.ino()) == (own.dev(), own.ino()) || wanted.dev() != own.dev() {
        return BTreeSet::new();
    }
    let Ok(processes) = fs::read_dir("/proc") else { return BTreeSet::new() };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/{kind}")).is_ok_and(|m| m.ino() == wanted.ino()))
        .collect()
}

fn remove_cgroups(root: &str) -> Result<()> {
    let end = Instant::now() + KILL_PATIENCE;
    for directory in cgroup_directories(root) {
        while let Err(e) = fs::remove_dir(&directory) {
            match e.raw_os_error() {
                Some(libc::ENOENT) => break,
                // A killed process leaves its cgroup a moment after it has ended.
                Some(libc::EBUSY) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
                _ => return Err(e).with_context(|| format!("removing {}", directory.display())),
            }
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
