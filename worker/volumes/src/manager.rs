//! Mounts and unmounts all volumes of a pod: chooses the type's file, applies fsGroup, and cleans up without touching what lies
//! behind a mount.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::atomic_writer::Payload;
use crate::fields::PodFields;
use crate::source::ObjectSource;
use crate::{
    Error, PodLayout, atomic_writer, config_map, downward_api, empty_dir, host_path, ownership, projected,
    secret, tmpfs,
};

/// What a volume type needs to know of its pod.
pub(crate) struct Context<'a> {
    pub fields: PodFields<'a>,
    pub namespace: &'a str,
    pub source: &'a dyn ObjectSource,
    pub fs_group: Option<i64>,
}

/// A volume ready to be mounted into containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Its path on the node.
    pub path: PathBuf,
    /// Whether containers always get it read-only (volumes made of API objects).
    pub read_only: bool,
}

/// Makes every volume of the pod, or brings it up to date; safe to call again at any time. The error names the volume that failed.
pub async fn mount_pod_volumes(
    layout: &PodLayout,
    fields: PodFields<'_>,
    source: &dyn ObjectSource,
) -> Result<BTreeMap<String, Mounted>, (String, Error)> {
    let pod = fields.pod;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let security = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let context = Context { fields, namespace, source, fs_group: security.and_then(|s| s.fs_group) };
    let mut mounted = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let ready =
            mount_one(layout, &context, volume).await.map_err(|error| (volume.name.clone(), error))?;
        mounted.insert(volume.name.clone(), ready);
    }
    Ok(mounted)
}

async fn mount_one(layout: &PodLayout, context: &Context<'_>, volume: &Volume) -> Result<Mounted, Error> {
    let name = &volume.name;
    if let Some(source) = &volume.config_map {
        let payload = config_map::payload(context, source).await?;
        return write_files(layout.volume(config_map::PLUGIN, name), payload, context, false);
    }
    if let Some(source) = &volume.secret {
        let payload = secret::payload(context, source).await?;
        return write_files(layout.volume(secret::PLUGIN, name), payload, context, true);
    }
    if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.map_or(0o644, crate::payload::mode_bits);
        let payload =
            downward_api::payload(&context.fields, source.items.as_deref().unwrap_or_default(), mode)?;
        return write_files(layout.volume(downward_api::PLUGIN, name), payload, context, true);
    }
    if let Some(source) = &volume.projected {
        let payload = projected::payload(context, source).await?;
        return write_files(layout.volume(projected::PLUGIN, name), payload, context, true);
    }
    if let Some(source) = &volume.empty_dir {
        let path = layout.volume(empty_dir::PLUGIN, name);
        empty_dir::set_up(&path, source)?;
        // The pod owns the content once its containers run: the walk is for the first set-up only.
        ownership::set(&path, context.fs_group, false, true)?;
        return Ok(Mounted { path, read_only: false });
    }
    if let Some(source) = &volume.host_path {
        return Ok(Mounted { path: host_path::set_up(source)?, read_only: false });
    }
    Err(Error::Invalid(format!("no volume plugin matched name: {name}")))
}

/// The first volume of a type this node cannot provide, for node-side admission.
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
    payload: Payload,
    context: &Context<'_>,
    in_memory: bool,
) -> Result<Mounted, Error> {
    let fresh = !path.exists();
    std::fs::create_dir_all(&path).map_err(|e| Error::io("make directory", &path, e))?;
    if in_memory {
        tmpfs::mount_tmpfs(&path, None)?;
    } else if fresh {
        atomic_writer::set_mode(&path, 0o777)?;
    }
    let group = context.fs_group;
    atomic_writer::write(&path, &payload, |dir| ownership::set(dir, group, true, false))?;
    Ok(Mounted { path, read_only: true })
}

/// Unmounts everything below the pod's directory and removes it. What a mount leads to is never deleted: with a mount left the
/// directory stays and the call fails, to be tried again.
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
