//! What the runtime and the shim tell each other by files: plans before, records after.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything a pod's daemon needs to know (`shim.json`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ShimPlan {
    pub sandbox_id: String,
    /// Whether the containers share a PID namespace, which the daemon then holds.
    pub shared_pid: bool,
}

/// Everything it takes to start a container (`launch.json` in its bundle).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LaunchPlan {
    pub container_id: String,
    /// The bundle: this plan's own directory.
    pub bundle: PathBuf,
    /// libcontainer's state directory.
    pub libcontainer: PathBuf,
    /// Where the records of start and exit are kept.
    pub records: PathBuf,
    pub rootfs: RootfsPlan,
    /// The OCI runtime specification, but for the user, which is looked up in the root file system.
    pub spec: serde_json::Value,
    pub user: UserRequest,
    pub propagation: Propagation,
    /// The cgroup, relative to the hierarchies' roots.
    pub cgroup: PathBuf,
    pub log_path: Option<PathBuf>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
}

/// An overlay: image layers below, one writable directory above.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RootfsPlan {
    pub layers_directory: PathBuf,
    /// Names of layers, lowest first.
    pub layers: Vec<String>,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// Paths that the image declares as volumes, with the host directories for them; a new
    /// directory is filled from the image.
    pub volumes: Vec<(PathBuf, PathBuf)>,
}

/// Who the process is to be, before names are looked up.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct UserRequest {
    /// The image's user: `user`, `uid`, `user:group` or `uid:gid`.
    pub image_user: String,
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_username: String,
    pub supplemental_groups: Vec<i64>,
    /// Whether groups that the image's `/etc/group` gives the user are left out.
    pub strict_groups: bool,
}

/// Who the process is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// How mounts made on the host reach the container, and the other way round: the widest
/// wish of all its mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// What a launcher leaves (`launched.json`, or the file named to `exec`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Launched {
    Ok { pid: i32, user: ResolvedUser },
    Err(String),
}

/// Written once a container runs (`started.json`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StartedRecord {
    pub pid: i32,
    /// Nanoseconds since 1970.
    pub started_at: i64,
    pub user: ResolvedUser,
}

/// Written once a container has ended and its output is in the log (`exit.json`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    /// As a shell gives it: 128 and the signal for a killed process.
    pub exit_code: i32,
    /// Nanoseconds since 1970.
    pub finished_at: i64,
    /// CamelCase reason, such as OOMKilled.
    pub reason: String,
    pub message: String,
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}
