//! The files by which runtime and shim communicate: plans for what is to be started,
//! records of what happened.

use std::path::PathBuf;

use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};

/// Version of the protocol between runtime and shim, over the socket and by files. A shim outlives the
/// program that started it, so that a runtime must support shims from [`OLDEST_PROTOCOL`] on. 0: shims from
/// before the version was introduced. 1: exits that are not on disk yet are sent to each new watcher.
pub(crate) const PROTOCOL: u32 = 1;
/// Oldest protocol version that this program supports.
pub(crate) const OLDEST_PROTOCOL: u32 = 0;

/// Plan of a pod's daemon (`shim.json`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ShimPlan {
    /// Protocol version that the daemon speaks ([`PROTOCOL`] of the program that it runs).
    #[serde(default)]
    pub protocol: u32,
    pub sandbox_id: String,
    /// Whether the containers share a PID namespace, which the daemon then keeps alive.
    pub shared_pid: bool,
}

/// Plan for starting a container (`launch.json` in its bundle).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LaunchPlan {
    pub container_id: String,
    /// The bundle: the directory that contains this plan.
    pub bundle: PathBuf,
    /// libcontainer's state directory.
    pub libcontainer: PathBuf,
    /// Directory of the start and exit records.
    pub records: PathBuf,
    pub rootfs: RootfsPlan,
    /// The OCI runtime specification without the user, who is looked up in the root file system.
    pub spec: serde_json::Value,
    pub user: UserRequest,
    /// System calls that the container may make.
    #[serde(default)]
    pub seccomp: SeccompProfile,
    pub propagation: Propagation,
    /// Path of the cgroup, relative to the root of each hierarchy.
    pub cgroup: PathBuf,
    pub log_path: Option<PathBuf>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
}

/// Set of system calls that a container may make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SeccompProfile {
    /// The system calls of the default profile and of the container's capabilities.
    #[default]
    RuntimeDefault,
    /// The system calls that a file on the node allows; holds its content.
    Localhost(Box<LinuxSeccomp>),
    /// All system calls.
    Unconfined,
}

/// An overlay mount: image layers below a writable directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RootfsPlan {
    pub layers_directory: PathBuf,
    /// Names of layers, lowest first.
    pub layers: Vec<String>,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// Paths that the image declares as volumes, with their host directories; a new directory is filled
    /// with the image's content.
    pub volumes: Vec<(PathBuf, PathBuf)>,
}

/// The requested user and groups, before names are looked up in the image.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct UserRequest {
    /// The image's user: `user`, `uid`, `user:group` or `uid:gid`.
    pub image_user: String,
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_username: String,
    pub supplemental_groups: Vec<i64>,
    /// Whether the groups that the image's `/etc/group` gives the user are ignored.
    pub strict_groups: bool,
}

impl UserRequest {
    /// Returns whether any part of the request is a name, which has to be looked up in the image's files.
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

/// Propagation of mounts between host and container: the widest that any of the container's mounts asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// Result of a launcher for the daemon (`launched.json`, or the file that is passed to `exec`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum LaunchResult {
    Ok { pid: i32, user: ResolvedUser },
    Err(String),
}

/// Record of a container's start, written once it runs (`started.json`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StartedRecord {
    pub pid: i32,
    /// Start time in nanoseconds since 1970.
    pub started_at: i64,
    pub user: ResolvedUser,
}

/// Record of a container's end, written once its output is in the log (`exit.json`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    /// Exit code as in a shell: 128 plus the signal number for a killed process.
    pub exit_code: i32,
    /// End time in nanoseconds since 1970.
    pub finished_at: i64,
    /// Reason in CamelCase, such as OOMKilled.
    pub reason: String,
    pub message: String,
}

/// Returns the current time in nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}
