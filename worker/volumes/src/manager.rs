//! Sets up, refreshes and removes all volumes of a pod: calls the volume type's module, applies fsGroup, and
//! cleans up without deleting what is mounted.
//!
//! The content of a volume is fetched first. Its file operations then run on a blocking thread, because a
//! host path may be on a file system that hangs. [`VolumeLock`] allows one operation for a pod at a time: a
//! hung one holds one thread, and no directory is removed while it is written to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, Pod, Volume};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::atomic_writer::Payload;
use crate::object_source::ObjectSource;
use crate::pod_fields::PodFields;
use crate::{
    Error, PodLayout, atomic_writer, config_map, downward_api, empty_dir, host_path, ownership, projected,
    secret, tmpfs,
};

/// Deadline of one file operation on a pod's volumes, and of waiting for the lock: kubelet's limit for a pod.
const PATIENCE: Duration = Duration::from_secs(123);

/// Pod data that the volume types need.
pub(crate) struct Context<'a> {
    pub fields: PodFields<'a>,
    pub namespace: &'a str,
    pub source: &'a dyn ObjectSource,
    pub fs_group: Option<i64>,
}

/// A volume ready to be mounted into containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedVolume {
    /// Its path on the node.
    pub path: PathBuf,
    /// Whether containers always mount the volume read-only, as they do volumes made of API objects.
    pub read_only: bool,
}

/// State of a pod's volumes after an attempt to set them up.
#[derive(Debug, Default)]
pub struct SetUpResult {
    /// Volumes that containers can use, by name.
    pub mounted: BTreeMap<String, MountedVolume>,
    /// Volumes that could not be brought up to date, each with the reason. A volume that was set up earlier
    /// is in `mounted` too, with its old content.
    pub errors: Vec<(String, Error)>,
}

impl SetUpResult {
    /// Returns the first volume that containers cannot use, with the reason; `None` if all can be used.
    pub fn missing(&self) -> Option<(&str, &Error)> {
        let missing = self.errors.iter().find(|(name, _)| !self.mounted.contains_key(name));
        missing.map(|(name, error)| (name.as_str(), error))
    }
}

/// Serializes the file operations on one pod's volumes; clones share the lock.
#[derive(Clone, Debug, Default)]
pub struct VolumeLock(Arc<Mutex<()>>);

impl VolumeLock {
    /// Runs `work` on a blocking thread once no other work on the pod's volumes runs. Fails if waiting for
    /// the lock, or the work, takes more than two minutes; work that has begun continues and keeps the lock
    /// until it ends.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let hung = |_| Error::Invalid("timed out waiting for the condition".to_owned());
        let guard = tokio::time::timeout(PATIENCE, self.0.clone().lock_owned()).await.map_err(hung)?;
        let done = tokio::task::spawn_blocking(move || {
            let _guard: OwnedMutexGuard<()> = guard;
            work()
        });
        match tokio::time::timeout(PATIENCE, done).await.map_err(hung)? {
            Ok(outcome) => outcome,
            Err(error) => Err(Error::Invalid(error.to_string())),
        }
    }
}

/// Creates every volume of the pod, or brings it up to date; safe to call again at any time. A volume that
/// fails does not stop the others.
pub async fn mount_pod_volumes(
    layout: &PodLayout,
    lock: &VolumeLock,
    fields: PodFields<'_>,
    source: &dyn ObjectSource,
) -> SetUpResult {
    let pod = fields.pod;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let security = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let context = Context { fields, namespace, source, fs_group: security.and_then(|s| s.fs_group) };
    let mut result = SetUpResult::default();
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let name = volume.name.clone();
        match mount_one(layout, lock, &context, volume).await {
            Ok(ready) => {
                result.mounted.insert(name, ready);
            }
            Err((error, usable)) => {
                result.mounted.extend(usable.map(|usable| (name.clone(), usable)));
                result.errors.push((name, error));
            }
        }
    }
    result
}

/// A volume to be made, with all content it needs already fetched.
enum Plan {
    Files { path: PathBuf, payload: Payload, in_memory: bool },
    EmptyDir { path: PathBuf, source: EmptyDirVolumeSource },
    HostPath(HostPathVolumeSource),
}

/// Sets up one volume. A failure returns the error, with the volume's old state if it was set up earlier.
async fn mount_one(
    layout: &PodLayout,
    lock: &VolumeLock,
    context: &Context<'_>,
    volume: &Volume,
) -> Result<MountedVolume, (Error, Option<MountedVolume>)> {
    let group = context.fs_group;
    let planned = plan(layout, context, volume).await;
    let outcome = match planned {
        Ok(plan) => lock.run(move || carry_out(plan, group)).await,
        Err(error) => Err(error),
    };
    let Err(error) = outcome else { return outcome.map_err(|error| (error, None)) };
    let Some(path) = files_path(layout, volume) else { return Err((error, None)) };
    let usable = lock.run(move || Ok(atomic_writer::is_written(&path).then_some(path))).await.ok().flatten();
    Err((error, usable.map(|path| MountedVolume { path, read_only: true })))
}

/// Returns the directory of a volume that is made of API objects; `None` for other types.
fn files_path(layout: &PodLayout, volume: &Volume) -> Option<PathBuf> {
    let plugins = [
        (volume.config_map.is_some(), config_map::PLUGIN),
        (volume.secret.is_some(), secret::PLUGIN),
        (volume.downward_api.is_some(), downward_api::PLUGIN),
        (volume.projected.is_some(), projected::PLUGIN),
    ];
    let plugin = plugins.into_iter().find(|(used, _)| *used)?.1;
    Some(layout.volume(plugin, &volume.name))
}

async fn plan(layout: &PodLayout, context: &Context<'_>, volume: &Volume) -> Result<Plan, Error> {
    let (payload, in_memory) = if let Some(source) = &volume.config_map {
        (config_map::payload(context, source).await?, false)
    } else if let Some(source) = &volume.secret {
        (secret::payload(context, source).await?, true)
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.map_or(0o644, crate::payload::mode_bits);
        let items = source.items.as_deref().unwrap_or_default();
        (downward_api::payload(&context.fields, items, mode)?, true)
    } else if let Some(source) = &volume.projected {
        (projected::payload(context, source).await?, true)
    } else if let Some(source) = &volume.empty_dir {
        let path = layout.volume(empty_dir::PLUGIN, &volume.name);
        return Ok(Plan::EmptyDir { path, source: source.clone() });
    } else if let Some(source) = &volume.host_path {
        return Ok(Plan::HostPath(source.clone()));
    } else {
        return Err(Error::Invalid(format!("no volume plugin matched name: {}", volume.name)));
    };
    let path = files_path(layout, volume)
        .ok_or_else(|| Error::Invalid(format!("no volume plugin matched name: {}", volume.name)))?;
    Ok(Plan::Files { path, payload, in_memory })
}

fn carry_out(plan: Plan, group: Option<i64>) -> Result<MountedVolume, Error> {
    match plan {
        Plan::Files { path, payload, in_memory } => write_files(path, &payload, group, in_memory),
        Plan::EmptyDir { path, source } => {
            empty_dir::set_up(&path, &source, group)?;
            Ok(MountedVolume { path, read_only: false })
        }
        Plan::HostPath(source) => Ok(MountedVolume { path: host_path::set_up(&source)?, read_only: false }),
    }
}

/// Returns the first volume of a type this node cannot provide, for node-side admission; `None` if all are
/// supported.
pub fn unsupported_volume(pod: &Pod) -> Option<&str> {
    let supported = |v: &Volume| {
        v.config_map.is_some()
            || v.secret.is_some()
            || v.downward_api.is_some()
            || v.projected.is_some()
            || v.empty_dir.is_some()
            || v.host_path.is_some()
    };
    let volumes = pod.spec.as_ref()?.volumes.as_ref()?;
    volumes.iter().find(|v| !supported(v)).map(|v| v.name.as_str())
}

fn write_files(
    path: PathBuf,
    payload: &Payload,
    group: Option<i64>,
    in_memory: bool,
) -> Result<MountedVolume, Error> {
    let fresh = !path.exists();
    std::fs::create_dir_all(&path).map_err(|e| Error::io("make directory", &path, e))?;
    if in_memory {
        tmpfs::mount_tmpfs(&path, None, None)?;
    } else if fresh {
        atomic_writer::set_mode(&path, 0o777)?;
    }
    atomic_writer::write(&path, payload, |dir| ownership::set(dir, group, true))?;
    Ok(MountedVolume { path, read_only: true })
}

/// Unmounts everything below the pod's directory and removes the directory. Mounted content is never deleted:
/// while a mount is left, the directory stays and the call fails, to be retried.
pub fn unmount_pod_volumes(layout: &PodLayout) -> Result<(), Error> {
    let dir = layout.pod_dir();
    if !dir.exists() {
        return Ok(());
    }
    tmpfs::unmount_below(dir)?;
    let left = tmpfs::mounts_below(dir)?;
    if !left.is_empty() {
        return Err(Error::StillMounted { path: dir.to_path_buf(), count: left.len() });
    }
    remove_tree(dir)
}

fn remove_tree(dir: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
