//! Removes everything a runtime has left on the machine, for `ephor reset` and `ephor dev down`, also after a
//! crash, when no runtime is running.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::{Cgroup, Hierarchies};
use crate::config::RuntimeConfig;
use crate::files;
use crate::server::unescape;

/// Number of steps to wait for killed processes to leave their cgroups.
const STEPS: u32 = 250;
const STEP: Duration = Duration::from_millis(20);

/// Counts of what was removed.
#[derive(Clone, Copy, Debug, Default)]
pub struct CleanupReport {
    /// Number of shims killed.
    pub shims: usize,
    /// Number of container processes killed.
    pub processes: usize,
    /// Number of mounts unmounted.
    pub mounts: usize,
}

/// Why what the runtime left could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// Processes could not be listed.
    #[error("list processes")]
    Processes(#[source] io::Error),
    /// A mount could not be unmounted.
    #[error("unmount {path}")]
    Unmount {
        /// Path of the mount.
        path: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// A cgroup could not be removed.
    #[error("remove the cgroup {path}")]
    Cgroup {
        /// Path of the cgroup, relative to the root of each hierarchy.
        path: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// A directory could not be removed.
    #[error("remove {path}")]
    Remove {
        /// Path of the directory.
        path: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
}

/// Kills every shim and container of the runtime that `config` describes, unmounts every mount below its two
/// directories, and removes its cgroups, its socket and its volatile directory. Images and records in `root`
/// are left to the caller. The runtime itself must have ended. Idempotent.
pub async fn remove_everything(config: &RuntimeConfig) -> Result<CleanupReport, CleanupError> {
    let mut report = CleanupReport::default();
    let state = config.state.canonicalize().unwrap_or_else(|_| config.state.clone());
    let root = config.root.canonicalize().unwrap_or_else(|_| config.root.clone());
    // Shims are killed first, so that nothing restarts and no container process survives without its parent.
    for pid in shims(|directory| directory.starts_with(&state)).map_err(CleanupError::Processes)? {
        // A process that has ended meanwhile needs no signal.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        report.shims += 1;
    }
    if let Ok(hierarchies) = Hierarchies::detect() {
        // The root of the hierarchies does not belong to this runtime.
        if config.cgroup_root.components().any(|c| matches!(c, std::path::Component::Normal(_))) {
            report.processes = empty(&hierarchies.cgroup(&config.cgroup_root), &config.cgroup_root).await?;
        }
    }
    for directory in [&state, &root] {
        report.mounts += unmount_below(directory)?;
    }
    let remove = |path: &Path, outcome: io::Result<()>| {
        outcome.map_err(|source| CleanupError::Remove { path: path.to_owned(), source })
    };
    remove(&config.socket, files::remove_file(&config.socket))?;
    remove(&state, files::remove_tree(&state))?;
    Ok(report)
}

/// Returns the shim processes, daemons and launchers, whose directory satisfies `wanted`.
pub(crate) fn shims(wanted: impl Fn(&Path) -> bool) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // A process that has ended meanwhile has no command line.
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = command.split(|b| *b == 0).collect();
        let directory =
            words.get(3).map(|w| Path::new(std::ffi::OsStr::new(std::str::from_utf8(w).unwrap_or_default())));
        if words.get(1) == Some(&b"shim".as_slice()) && directory.is_some_and(&wanted) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Kills the processes of a cgroup until none is left, and removes the cgroup.
async fn empty(cgroup: &Cgroup, path: &Path) -> Result<usize, CleanupError> {
    let mut killed = 0;
    for step in 1..=STEPS {
        killed = killed.max(cgroup.kill());
        match cgroup.remove() {
            Ok(()) => break,
            Err(_) if step < STEPS => tokio::time::sleep(STEP).await,
            Err(source) => return Err(CleanupError::Cgroup { path: path.to_owned(), source }),
        }
    }
    Ok(killed)
}

/// Unmounts every mount at or below `directory`, the newest first; returns how many there were.
fn unmount_below(directory: &Path) -> Result<usize, CleanupError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CleanupError::Unmount { path, source }
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(failed(directory))?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(|p| PathBuf::from(unescape(p)));
    let mut below: Vec<PathBuf> = points.filter(|p| p.starts_with(directory)).collect();
    below.reverse();
    for point in &below {
        match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(failed(point)(error.into())),
        }
    }
    Ok(below.len())
}
