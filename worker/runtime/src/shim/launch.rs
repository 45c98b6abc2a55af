//! The launcher of a container: a process with one thread that mounts the root file system,
//! completes the specification and lets libcontainer make and start the container, which
//! becomes a child of the daemon. Its own standard streams are the container's.

use std::fs;
use std::io;
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, fchown};
use serde_json::{Value, json};

use super::plan::{LaunchPlan, Launched, ResolvedUser};
use super::stdio::CONSOLE;
use super::{ShimError, rootfs};
use crate::cgroup::{Cgroup, Hierarchies};
use crate::files;
use crate::paths::container_file;

/// Starts the container whose bundle is `bundle` and leaves a [`Launched`] there.
pub(crate) fn run(bundle: &Path) -> Result<(), ShimError> {
    let outcome = match launch(bundle) {
        Ok(launched) => launched,
        Err(error) => Launched::Err(files::chain(&error)),
    };
    files::write_json(&bundle.join(container_file::LAUNCHED), &outcome)
        .map_err(ShimError::io("leave the result"))
}

fn launch(bundle: &Path) -> Result<Launched, ShimError> {
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
    let spec = complete(&plan, &root, &user, &cgroup);
    files::write_json(&bundle.join(container_file::SPEC), &spec)
        .map_err(ShimError::io("write the specification"))?;
    fs::create_dir_all(&plan.libcontainer).map_err(ShimError::io("make libcontainer's directory"))?;
    let console = plan.tty.then(|| bundle.join(CONSOLE));
    let mut container = ContainerBuilder::new(plan.container_id.clone(), SyscallType::default())
        .with_root_path(&plan.libcontainer)
        .map_err(failed)?
        .with_console_socket(console)
        .validate_id()
        .map_err(failed)?
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(failed)?;
    container.start().map_err(failed)?;
    let pid = container.pid().ok_or_else(|| ShimError::Container("the container has no process".into()))?;
    Ok(Launched::Ok { pid: pid.as_raw(), user })
}

/// Undoes what a Rust program sets for itself and its children would inherit.
#[allow(unsafe_code, reason = "resetting SIGPIPE to its default installs no handler that could be unsound")]
pub(crate) fn settle() -> Result<(), ShimError> {
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map_err(ShimError::io("reset SIGPIPE"))?;
    umask(Mode::from_bits_truncate(0o022));
    Ok(())
}

/// The text of libcontainer's error, in the words that runc has for the most common one.
pub(crate) fn failed(error: LibcontainerError) -> ShimError {
    let text = files::chain(&error);
    let missing =
        text.split_once("executable '").and_then(|(_, rest)| rest.split_once("' not found in $PATH"));
    ShimError::Container(match missing {
        Some((program, _)) => {
            format!(
                "unable to start container process: exec: \"{program}\": executable file not found in $PATH"
            )
        }
        None => format!("unable to start container process: {text}"),
    })
}

/// A process that is not root must be able to open `/dev/stdout` again.
fn own_streams(user: &ResolvedUser) -> Result<(), ShimError> {
    let owner = (Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)));
    let own = |outcome: nix::Result<()>| match outcome {
        // Not every file there can be owned: /dev/null of another namespace.
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

/// The specification with what is known only now: root, user, volumes, cgroup mounts.
fn complete(plan: &LaunchPlan, root: &Path, user: &ResolvedUser, cgroup: &Cgroup) -> Value {
    let mut spec = plan.spec.clone();
    spec["root"]["path"] = json!(root);
    spec["process"]["user"] = json!({ "uid": user.uid, "gid": user.gid, "additionalGids": user.groups });
    if let Some(wish) = spec["process"]["oomScoreAdj"].as_i64() {
        spec["process"]["oomScoreAdj"] = json!(possible_oom_score(wish));
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

/// With version 1 a container sees its own cgroup of each controller, bound one by one.
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

/// The wished score, or this process's own where the kernel would not allow less: lowering
/// it needs CAP_SYS_RESOURCE (containerd's `restrict_oom_score_adj`).
fn possible_oom_score(wish: i64) -> i64 {
    let current =
        fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
    if wish >= current {
        return wish;
    }
    // Whether it may is found out by doing it; libcontainer sets the same value right after.
    match fs::write("/proc/self/oom_score_adj", wish.to_string()) {
        Ok(()) => wish,
        Err(_) => current,
    }
}
