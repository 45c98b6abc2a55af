//! The plan that a container's launcher follows; made when the container is created.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_cri::v1;
use k8s_cri::v1::NamespaceMode;
use nix::sys::signal::Signal;
use tonic::Status;

use super::{Service, internal};
use crate::container::security::{self, Modules};
use crate::container::{ContainerRecord, SpecInput, build, propagation};
use crate::files;
use crate::image::Image;
use crate::paths::{container_file, sandbox_file};
use crate::sandbox::Sandbox;
use crate::shim::plan::{LaunchPlan, RootfsPlan, UserRequest};

impl Service {
    /// Makes the plan for starting a container, with its specification and root file system.
    pub(super) fn launch_plan(
        &self,
        sandbox: &Arc<Sandbox>,
        record: &ContainerRecord,
        image: &Image,
    ) -> Result<LaunchPlan, Status> {
        let config = &record.config;
        let root = self.paths.container_root(&record.id);
        let sandbox_state = self.paths.sandbox_state(&record.sandbox_id);
        let process = image.config.config.clone().unwrap_or_default();
        let taken = |path: &str| {
            config.mounts.iter().any(|m| m.container_path.trim_end_matches('/') == path.trim_end_matches('/'))
        };
        let declared = process.volumes.iter().flatten().map(|(path, _)| path).filter(|path| !taken(path));
        let volumes: Vec<(PathBuf, PathBuf)> = declared
            .enumerate()
            .map(|(n, path)| {
                (Path::new("/").join(path), root.join(container_file::VOLUMES).join(n.to_string()))
            })
            .collect();
        let spec = build(&SpecInput {
            config,
            image: &image.config,
            sandbox_state: &sandbox_state,
            hostname: &sandbox.record().hostname(),
            cgroup: &record.cgroup,
            pid_namespace: self.pid_namespace(config, &sandbox_state)?,
            image_volumes: &volumes,
        });
        let spec = spec.map_err(|e| {
            Status::unknown(format!("failed to generate container \"{}\" spec: {e}", record.id))
        })?;
        let context = config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default();
        let refused =
            |e| Status::unknown(format!("failed to generate container \"{}\" spec: {e}", record.id));
        security::check(&context, Modules::detect()).map_err(refused)?;
        let seccomp = security::seccomp(&context).map_err(refused)?;
        Ok(LaunchPlan {
            seccomp,
            container_id: record.id.clone(),
            bundle: self.paths.container_state(&record.id),
            libcontainer: self.paths.libcontainer(),
            rootfs: RootfsPlan {
                layers_directory: self.images.layers_directory().to_owned(),
                layers: image.layers.clone(),
                upper: root.join(container_file::UPPER),
                work: root.join(container_file::WORK),
                volumes,
            },
            spec,
            user: UserRequest {
                image_user: process.user.unwrap_or_default(),
                run_as_user: context.run_as_user.map(|v| v.value),
                run_as_group: context.run_as_group.map(|v| v.value),
                run_as_username: context.run_as_username.clone(),
                supplemental_groups: context.supplemental_groups.clone(),
                strict_groups: context.supplemental_groups_policy() == v1::SupplementalGroupsPolicy::Strict,
            },
            propagation: propagation(&config.mounts),
            cgroup: record.cgroup.clone(),
            log_path: record.log_path.clone(),
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            tty: config.tty,
            records: root,
        })
    }

    /// Returns the PID namespace that the container joins, the pod's or another
    /// container's; `None` if it joins none.
    fn pid_namespace(
        &self,
        config: &v1::ContainerConfig,
        sandbox_state: &Path,
    ) -> Result<Option<PathBuf>, Status> {
        let linux = config.linux.as_ref();
        let options =
            linux.and_then(|l| l.security_context.as_ref()).and_then(|c| c.namespace_options.clone());
        let options = options.unwrap_or_default();
        let pid: i32 = match options.pid() {
            NamespaceMode::Container | NamespaceMode::Node => return Ok(None),
            NamespaceMode::Pod => match files::read_json(&sandbox_state.join(sandbox_file::PID_HOLDER)) {
                Ok(Some(pid)) => pid,
                // The pod's sandbox has no shared PID namespace.
                Ok(None) => return Ok(None),
                Err(error) => return Err(internal("failed to find the pod's PID namespace")(error)),
            },
            NamespaceMode::Target => {
                let target = self.container(&options.target_id)?;
                let progress = target.progress.borrow();
                let started = progress.started.as_ref().filter(|_| progress.is_running());
                started
                    .map(|s| s.pid)
                    .ok_or_else(|| Status::unknown("invalid target container: not running"))?
            }
        };
        Ok(Some(format!("/proc/{pid}/ns/pid").into()))
    }
}

/// Returns the number of the image's STOPSIGNAL, given by name or number; SIGTERM if it
/// has none or an unknown one.
pub(super) fn stop_signal(image: &Image) -> i32 {
    let text = image.config.config.as_ref().and_then(|c| c.stop_signal.clone()).unwrap_or_default();
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).map_or(Signal::SIGTERM as i32, |s| s as i32);
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    name.parse::<Signal>().unwrap_or(Signal::SIGTERM) as i32
}
