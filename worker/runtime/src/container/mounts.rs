//! Mounts of a container: the default mounts, the pod's files, and the volumes.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use k8s_cri::v1;
use k8s_cri::v1::MountPropagation;
use serde_json::{Value, json};

use super::SpecError;
use crate::paths::sandbox_file;
use crate::shim::plan::Propagation;

/// Settings besides the volumes that determine the mounts.
pub(crate) struct MountContext<'a> {
    pub sandbox_state: &'a Path,
    pub privileged: bool,
    pub readonly_rootfs: bool,
    pub host_ipc: bool,
}

/// Returns all mounts in the order in which they are made.
pub(crate) fn plan(
    config: &v1::ContainerConfig,
    context: &MountContext<'_>,
) -> Result<Vec<Value>, SpecError> {
    let system = if context.privileged { "rw" } else { "ro" };
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", system]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", system]),
    ];
    let mut volumes = pod_mounts(config, context);
    for volume in &config.mounts {
        volumes.push(volume_mount(volume)?);
    }
    // Volumes at deeper paths are mounted later; otherwise a volume above would hide them.
    volumes.sort_by_key(|v| Path::new(v["destination"].as_str().unwrap_or("/")).components().count());
    let hides = |path: &str| volumes.iter().any(|v| v["destination"] == path);
    mounts.retain(|m| !m["destination"].as_str().is_some_and(hides));
    mounts.extend(volumes);
    Ok(mounts)
}

/// Returns the mounts of the pod's own files, except where a volume takes their place.
fn pod_mounts(config: &v1::ContainerConfig, context: &MountContext<'_>) -> Vec<Value> {
    let taken = |path: &str| config.mounts.iter().any(|m| clean(&m.container_path) == Path::new(path));
    let access = if context.readonly_rootfs { "ro" } else { "rw" };
    let mut mounts = Vec::new();
    let files = [
        ("/etc/hostname", sandbox_file::HOSTNAME),
        ("/etc/hosts", sandbox_file::HOSTS),
        ("/etc/resolv.conf", sandbox_file::RESOLV_CONF),
    ];
    for (path, file) in files.into_iter().filter(|(path, _)| !taken(path)) {
        let source = context.sandbox_state.join(file);
        mounts.push(json!({ "destination": path, "type": "bind", "source": source, "options": ["rbind", "rprivate", access] }));
    }
    if !taken("/dev/shm") {
        let source = match context.host_ipc {
            true => PathBuf::from("/dev/shm"),
            false => context.sandbox_state.join(sandbox_file::SHM),
        };
        mounts.push(json!({ "destination": "/dev/shm", "type": "bind", "source": source, "options": ["rbind", "rprivate", "rw"] }));
    }
    mounts
}

fn volume_mount(volume: &v1::Mount) -> Result<Value, SpecError> {
    let failed = |source| SpecError::Mount { path: volume.host_path.clone(), source };
    if volume.image.is_some() {
        return Err(SpecError::Unsupported("image volumes are not supported"));
    }
    if !volume.uid_mappings.is_empty() || !volume.gid_mappings.is_empty() {
        return Err(SpecError::Unsupported("mounts with id mappings are not supported"));
    }
    let source = match fs::canonicalize(&volume.host_path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(&volume.host_path).map_err(failed)?;
            fs::canonicalize(&volume.host_path).map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    let propagation = match volume.propagation() {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => "rslave",
        MountPropagation::PropagationBidirectional => "rshared",
    };
    let mut options = vec!["rbind", propagation, if volume.readonly { "ro" } else { "rw" }];
    if volume.readonly && volume.recursive_read_only {
        options.push("rro");
    }
    let destination = clean(&volume.container_path);
    Ok(json!({ "destination": destination, "type": "bind", "source": source, "options": options }))
}

/// Makes a path absolute and removes `.` and `..` from it.
fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// Returns the widest propagation that any volume asks for.
pub(crate) fn propagation(mounts: &[v1::Mount]) -> Propagation {
    let each = mounts.iter().map(|m| match m.propagation() {
        MountPropagation::PropagationPrivate => Propagation::Private,
        MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    });
    each.max().unwrap_or_default()
}
