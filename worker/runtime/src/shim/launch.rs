//! A container's launcher: a process with a single thread that mounts the root file system, completes the
//! specification and lets libcontainer create and start the container, which becomes a child of the daemon.
//! The launcher's standard streams are passed on to the container.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, fchown};
use serde_json::{Value, json};

use super::executor::{ErrorPipe, ProgramExecutor};
use super::plan::{LaunchPlan, LaunchResult, ResolvedUser};
use super::stdio::CONSOLE;
use super::{ShimError, device_filter, rootfs};
use crate::cgroup::{Cgroup, Hierarchies};
use crate::files;
use crate::paths::container_file;

/// Starts the container whose bundle is `bundle` and writes the result, a [`LaunchResult`], into the bundle.
pub(crate) fn run(bundle: &Path) -> Result<(), ShimError> {
    let outcome = match launch(bundle) {
        Ok(launched) => launched,
        Err(error) => LaunchResult::Err(files::chain(&error)),
    };
    files::write_json(&bundle.join(container_file::LAUNCHED), &outcome)
        .map_err(ShimError::io("leave the result"))
}

fn launch(bundle: &Path) -> Result<LaunchResult, ShimError> {
    let plan: LaunchPlan = files::read_json(&bundle.join(container_file::PLAN))
        .map_err(ShimError::io("read the plan"))?
        .ok_or_else(|| ShimError::Container("the container has no plan".into()))?;
    settle()?;
    let root = rootfs::mount_overlay(&plan)?;
    let user = rootfs::prepare(&plan, &root)?;
    own_streams(&user)?;
    let cgroup =
        Hierarchies::detect().map_err(ShimError::io("find the cgroup hierarchies"))?.cgroup(&plan.cgroup);
    cgroup.create().map_err(ShimError::io("make the cgroup"))?;
    if cgroup.is_unified()
        && let Some(directory) = cgroup.directory("devices")
    {
        device_filter::attach(&directory, &plan.spec["linux"]["resources"]["devices"])
            .map_err(ShimError::io("enforce the container's device rules"))?;
    }
    let spec = complete(&plan, &root, &user, &cgroup);
    files::write_json(&bundle.join(container_file::SPEC), &spec)
        .map_err(ShimError::io("write the specification"))?;
    files::make_private_directory(&plan.libcontainer)
        .map_err(ShimError::io("make libcontainer's directory"))?;
    let console = plan.tty.then(|| bundle.join(CONSOLE));
    let (executor, error) = ProgramExecutor::new(&plan)?;
    let started = build(&plan, bundle, console, executor);
    let pid = outcome(started, error)?;
    tidy(&plan.libcontainer.join(&plan.container_id)).map_err(ShimError::io("protect the state"))?;
    Ok(LaunchResult::Ok { pid, user })
}

/// Creates the container and starts its program. On return the executor's end of the error pipe is closed.
fn build(
    plan: &LaunchPlan,
    bundle: &Path,
    console: Option<PathBuf>,
    executor: ProgramExecutor,
) -> Result<i32, LibcontainerError> {
    let mut container = ContainerBuilder::new(plan.container_id.clone(), SyscallType::default())
        .with_root_path(&plan.libcontainer)?
        .with_executor(executor)
        .with_console_socket(console)
        .validate_id()?
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()?;
    container.start()?;
    container
        .pid()
        .map(|pid| pid.as_raw())
        .ok_or_else(|| LibcontainerError::Other("the container has no process".into()))
}

/// Returns the process that a builder started, or the reason why its program does not run. Prefers the error
/// that the executor sent over the pipe, because it says more than libcontainer's.
pub(super) fn outcome(started: Result<i32, LibcontainerError>, error: ErrorPipe) -> Result<i32, ShimError> {
    match (error.read(), started) {
        (Some(message), _) => {
            Err(ShimError::Container(format!("unable to start container process: {message}")))
        }
        (None, Ok(pid)) => Ok(pid),
        (None, Err(error)) => {
            Err(ShimError::Container(format!("unable to start container process: {}", files::chain(&error))))
        }
    }
}

/// Makes libcontainer's files in the state directory private to this user, and removes the socket that
/// libcontainer leaves behind for each further process it started.
pub(super) fn tidy(directory: &Path) -> io::Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    let sockets = fs::read_to_string("/proc/net/unix")?;
    for entry in fs::read_dir(directory)? {
        let (path, name) = match entry {
            Ok(entry) => (entry.path(), entry.file_name().to_string_lossy().into_owned()),
            // Another launcher has removed the file at the same time.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let done = match name.starts_with("tenant-notify-") && !sockets.contains(&name) {
            true => files::remove_file(&path),
            false => fs::set_permissions(&path, fs::Permissions::from_mode(0o600)),
        };
        match done {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// Resets process settings that Rust's runtime changes and that children would inherit.
#[allow(unsafe_code, reason = "resetting SIGPIPE to its default installs no handler that could be unsound")]
pub(crate) fn settle() -> Result<(), ShimError> {
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map_err(ShimError::io("reset SIGPIPE"))?;
    umask(Mode::from_bits_truncate(0o022));
    Ok(())
}

/// Makes the process's user the owner of its standard streams, so that it can open `/dev/stdout` again.
fn own_streams(user: &ResolvedUser) -> Result<(), ShimError> {
    let owner = (Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)));
    let own = |outcome: nix::Result<()>| match outcome {
        // Some files cannot change their owner, such as `/dev/null` of another user namespace.
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::EPERM | nix::Error::EROFS) => Ok(()),
        Err(error) => Err(ShimError::io("own the standard streams")(error)),
    };
    let pipe = |link: &str| fs::read_link(link).is_ok_and(|l| l.to_string_lossy().starts_with("pipe:"));
    if pipe("/proc/self/fd/0") {
        own(fchown(io::stdin(), owner.0, owner.1))?;
    }
    if pipe("/proc/self/fd/1") {
        own(fchown(io::stdout(), owner.0, owner.1))?;
    }
    if pipe("/proc/self/fd/2") {
        own(fchown(io::stderr(), owner.0, owner.1))?;
    }
    Ok(())
}

/// Returns the specification completed with values known only now: root, user, volumes, cgroup mounts.
fn complete(plan: &LaunchPlan, root: &Path, user: &ResolvedUser, cgroup: &Cgroup) -> Value {
    let mut spec = plan.spec.clone();
    spec["root"]["path"] = json!(root);
    spec["process"]["user"] = json!({ "uid": user.uid, "gid": user.gid, "additionalGids": user.groups });
    // The executor drops the capabilities, once the seccomp filter is installed.
    if let Some(process) = spec["process"].as_object_mut() {
        process.remove("capabilities");
    }
    if let Some(wanted) = spec["process"]["oomScoreAdj"].as_i64() {
        spec["process"]["oomScoreAdj"] = json!(possible_oom_score(wanted));
    }
    let mut mounts = Vec::new();
    for mount in spec["mounts"].as_array().cloned().unwrap_or_default() {
        match mount["type"].as_str() {
            Some("cgroup") if !cgroup.is_unified() => mounts.extend(cgroup_mounts(&mount, cgroup)),
            _ => mounts.push(mount),
        }
    }
    spec["mounts"] = Value::Array(mounts);
    spec
}

/// Returns the mounts of `/sys/fs/cgroup` for cgroup version 1: the container's own
/// cgroup of each controller.
fn cgroup_mounts(mount: &Value, cgroup: &Cgroup) -> Vec<Value> {
    let writable = mount["options"].as_array().is_some_and(|o| o.iter().any(|o| o == "rw"));
    let mut mounts = vec![json!({
        "destination": "/sys/fs/cgroup", "type": "tmpfs", "source": "tmpfs",
        "options": ["nosuid", "noexec", "nodev", "mode=755"],
    })];
    for (controller, directory) in cgroup.controllers() {
        mounts.push(json!({
            "destination": format!("/sys/fs/cgroup/{controller}"), "type": "bind", "source": directory,
            "options": ["bind", "nosuid", "noexec", "nodev", if writable { "rw" } else { "ro" }],
        }));
    }
    mounts
}

/// Returns the wanted OOM score, or this process's own if the kernel does not permit to lower it, which
/// requires CAP_SYS_RESOURCE (containerd's `restrict_oom_score_adj`).
fn possible_oom_score(wanted: i64) -> i64 {
    let current =
        fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
    if wanted >= current {
        return wanted;
    }
    // Tries out whether lowering is permitted; libcontainer sets the same value right afterwards.
    match fs::write("/proc/self/oom_score_adj", wanted.to_string()) {
        Ok(()) => wanted,
        Err(_) => current,
    }
}
