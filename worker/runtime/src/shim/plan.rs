//! What the runtime and the shim tell each other by files: plans before, records after.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The version of what runtime and shim say to each other, over the socket and by files. A shim outlives the
/// program that started it, so a runtime speaks to shims of [`OLDEST_PROTOCOL`] and later. 0: shims from before
/// there was a version. 1: unwritten exits are told to whoever begins to watch.
pub(crate) const PROTOCOL: u32 = 1;
/// The oldest version that this program speaks.
pub(crate) const OLDEST_PROTOCOL: u32 = 0;

/// Everything a pod's daemon needs to know (`shim.json`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ShimPlan {
    /// The version of the protocol that the daemon speaks ([`PROTOCOL`] of the program that it runs).
    #[serde(default)]
    pub protocol: u32,
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
    /// Which system calls the container may make.
    #[serde(default)]
    pub seccomp: SeccompProfile,
    pub propagation: Propagation,
    /// The cgroup, relative to the hierarchies' roots.
    pub cgroup: PathBuf,
    pub log_path: Option<PathBuf>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
}

/// Which system calls a container may make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SeccompProfile {
    /// Those of the default profile and of the container's capabilities.
    #[default]
    RuntimeDefault,
    /// All.
    Unconfined,
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

/// The user and groups asked for, before names are looked up in the image.
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

impl UserRequest {
    /// Whether any part of it is a name, which only the image's files can tell the number of.
    pub fn has_name(&self) -> bool {
        let is_name = |text: &str| !text.is_empty() && text.parse::<u32>().is_err();
        match (self.run_as_user, self.run_as_username.is_empty()) {
            (Some(_), _) => false,
            (None, false) => is_name(&self.run_as_username),
            (None, true) => self.image_user.splitn(2, ':').any(is_name),
        }
    }
}

/// The process's user and groups, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// How mounts made on the host reach the container, and the other way round: the widest
/// propagation that any of its mounts asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// How a launcher's work ended, for the daemon (`launched.json`, or the file that `exec` is given).
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
