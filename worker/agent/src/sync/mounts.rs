//! A container's mounts: volumes, sub-paths, the managed hosts file, the termination message file. `start`
//! prepares them on a blocking thread while holding the lock of the pod's volumes.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_cri::v1::{Mount, MountPropagation};
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use worker_volumes::{MountedVolume, PodLayout, subpath};

use crate::env::expand::expand;
use crate::{Error, hosts, pod, protection};

/// Inputs for the mounts of one container; owned, because a blocking thread uses them.
pub struct MountRequest {
    /// The container's pod.
    pub pod: Arc<Pod>,
    /// Data directory of the agent.
    pub root_dir: PathBuf,
    /// Domain of the cluster, for the hosts file.
    pub cluster_domain: String,
    /// The pod's volumes by name.
    pub volumes: BTreeMap<String, MountedVolume>,
    /// Specification of the container.
    pub container: Container,
    /// Restart count of the container.
    pub attempt: u32,
    /// IP addresses of the pod.
    pub ips: Vec<String>,
    /// The container's environment, for `subPathExpr`.
    pub environment: Vec<(String, String)>,
    /// Whether the runtime supports recursive read-only mounts.
    pub recursive_read_only: bool,
}

impl MountRequest {
    /// Prepares all mounts of the container on the node.
    pub fn make(&self) -> Result<Vec<Mount>, Error> {
        let layout = PodLayout::new(&self.root_dir, pod::uid(&self.pod));
        std::fs::create_dir_all(layout.pod_dir())
            .map_err(|e| Error::io("make directory", layout.pod_dir(), e))?;
        let mut mounts = Vec::new();
        for (index, mount) in self.container.volume_mounts.iter().flatten().enumerate() {
            mounts.push(self.volume_mount(&layout, index, mount)?);
        }
        if !mounts.iter().any(|m| m.container_path == "/etc/hosts") && !self.ips.is_empty() {
            mounts.push(self.hosts_mount(&layout)?);
        }
        mounts.push(termination_message(&layout, &self.container, self.attempt)?);
        Ok(mounts)
    }

    fn volume_mount(&self, layout: &PodLayout, index: usize, mount: &VolumeMount) -> Result<Mount, Error> {
        let container = &self.container;
        let volume = self.volumes.get(&mount.name).ok_or_else(|| {
            Error::Invalid(format!(
                "cannot find volume \"{}\" to mount into container \"{}\"",
                mount.name, container.name
            ))
        })?;
        let recursive_read_only =
            protection::recursive_read_only(mount, self.recursive_read_only).map_err(Error::Invalid)?;
        let sub_path = self.sub_path(mount)?;
        let host_path = match sub_path.as_deref().filter(|p| !p.is_empty()) {
            Some(sub_path) => {
                let target = layout.subpath(&mount.name, &container.name, index);
                subpath::prepare(&volume.path, sub_path, &target)
                    .map_err(|source| Error::Volume { volume: mount.name.clone(), source })?
            }
            None => {
                ensure_exists(&volume.path)?;
                volume.path.clone()
            }
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("Bidirectional") => MountPropagation::PropagationBidirectional,
            Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
            _ => MountPropagation::PropagationPrivate,
        };
        let container_path = if mount.mount_path.starts_with('/') {
            mount.mount_path.clone()
        } else {
            format!("/{}", mount.mount_path)
        };
        Ok(Mount {
            container_path,
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: mount.read_only.unwrap_or(false) || volume.read_only,
            propagation: propagation as i32,
            recursive_read_only,
            ..Default::default()
        })
    }

    fn sub_path(&self, mount: &VolumeMount) -> Result<Option<String>, Error> {
        let Some(expression) = mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) else {
            return Ok(mount.sub_path.clone());
        };
        let missing = std::cell::Cell::new(false);
        let path = expand(expression, |name| {
            let value = self.environment.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
            missing.set(missing.get() || value.is_none());
            value
        });
        if missing.get() {
            return Err(Error::Invalid(format!("missing value for \"{expression}\"")));
        }
        if path.starts_with('/') {
            return Err(Error::Invalid(format!(
                "failed to prepare subPath for volumeMount \"{}\": subPath must be a relative path",
                mount.name
            )));
        }
        Ok(Some(path))
    }

    fn hosts_mount(&self, layout: &PodLayout) -> Result<Mount, Error> {
        let path = layout.etc_hosts();
        let (hostname, domain) = hosts::names(&self.pod, &self.cluster_domain);
        hosts::write(&path, &self.pod, &self.ips, &hostname, &domain)?;
        let security = self.container.security_context.as_ref();
        Ok(Mount {
            container_path: "/etc/hosts".to_owned(),
            host_path: path.to_string_lossy().into_owned(),
            readonly: security.and_then(|s| s.read_only_root_filesystem).unwrap_or(false),
            ..Default::default()
        })
    }
}

/// Creates the directory of a hostPath without a type if it is missing, as runtimes used with kubelet do: the
/// embedded runtime would refuse a missing path.
fn ensure_exists(path: &Path) -> Result<(), Error> {
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(|e| Error::io("make directory", path, e))
}

/// Creates an empty file for the container's termination message, writable by any user.
fn termination_message(layout: &PodLayout, container: &Container, attempt: u32) -> Result<Mount, Error> {
    let dir = layout.container(&container.name);
    std::fs::create_dir_all(&dir).map_err(|e| Error::io("make directory", &dir, e))?;
    let path: PathBuf = dir.join(format!("{attempt:08x}"));
    std::fs::write(&path, "").map_err(|e| Error::io("create", &path, e))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))
        .map_err(|e| Error::io("chmod", &path, e))?;
    let container_path =
        container.termination_message_path.as_deref().unwrap_or("/dev/termination-log").to_owned();
    Ok(Mount { container_path, host_path: path.to_string_lossy().into_owned(), ..Default::default() })
}
