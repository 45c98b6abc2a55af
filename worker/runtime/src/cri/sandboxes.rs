//! Pod sandboxes: run, stop, remove, status.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use futures::future::join_all;
use k8s_cri::v1;
use tonic::Status;

use super::{Service, blocking, internal, new_id};
use crate::container::security::{self, Modules};
use crate::files;
use crate::network::{PodRef, PortMapping, Protocol};
use crate::paths::sandbox_file;
use crate::sandbox::{self, Sandbox, SandboxRecord};
use crate::shim::client::{ShimClient, ShimClientError};
use crate::shim::plan::{PROTOCOL, ShimPlan, now};

impl Service {
    /// Creates and starts a pod's sandbox: namespaces, files, shim, network. On an error
    /// everything is removed again.
    pub(super) async fn run_sandbox(&self, request: v1::RunPodSandboxRequest) -> Result<String, Status> {
        let config = request.config.ok_or_else(|| Status::invalid_argument("sandbox config is missing"))?;
        let metadata = config
            .metadata
            .clone()
            .ok_or_else(|| Status::invalid_argument("sandbox config must include metadata"))?;
        if !request.runtime_handler.is_empty() {
            let text = format!("no runtime for \"{}\" is configured", request.runtime_handler);
            return Err(Status::unknown(format!("failed to get sandbox runtime: {text}")));
        }
        if let Some(context) = config.linux.as_ref().and_then(|l| l.security_context.as_ref()) {
            security::check_sandbox(context, Modules::detect())
                .map_err(|e| Status::unknown(format!("failed to create sandbox: {e}")))?;
        }
        let id = new_id();
        let v1::PodSandboxMetadata { name, uid, namespace, attempt } = metadata;
        self.reserve(&format!("{name}_{namespace}_{uid}_{attempt}"), &id)?;
        let cgroup = self.pod_cgroup(&config, &id);
        let record = SandboxRecord {
            own_cgroup: !self.hierarchies.cgroup(&cgroup).exists(),
            id: id.clone(),
            config,
            runtime_handler: String::new(),
            created_at: now(),
            ready: false,
            attached: false,
            addresses: Vec::new(),
            cgroup,
        };
        let sandbox = Arc::new(Sandbox::new(record, ShimClient::new(self.paths.sandbox_state(&id))));
        let gate = sandbox.gate.lock().await;
        // Added to the tables before it is started, so that an interrupted start is cleaned up
        // after a restart. A stop request waits for the gate: a sandbox that is only partly
        // made cannot be taken down.
        self.tables().sandboxes.insert(id.clone(), sandbox.clone());
        let started = self.start_sandbox(&sandbox).await;
        drop(gate);
        if let Err(error) = started {
            tracing::warn!(sandbox = id, %error, "the sandbox could not be made");
            if let Err(error) = self.remove_sandbox(&id).await {
                tracing::error!(sandbox = id, %error, "cleaning up after a failed sandbox");
            }
            return Err(error);
        }
        self.watch_shim(sandbox);
        self.publish(&id, &id, v1::ContainerEventType::ContainerCreatedEvent);
        self.publish(&id, &id, v1::ContainerEventType::ContainerStartedEvent);
        Ok(id)
    }

    async fn start_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<(), Status> {
        let record = sandbox.record();
        let state = self.paths.sandbox_state(&record.id);
        let root = self.paths.sandbox_root(&record.id);
        files::make_private_directory(&root).map_err(internal("failed to create sandbox root directory"))?;
        self.save(sandbox, |_| {}).await?;
        let (making, directory) = (record.clone(), state.clone());
        blocking(move || sandbox::make(&making, &directory))
            .await?
            .map_err(internal("failed to set up sandbox"))?;
        let shared_pid = record.namespaces().pid() == v1::NamespaceMode::Pod;
        let plan = ShimPlan { protocol: PROTOCOL, sandbox_id: record.id.clone(), shared_pid };
        sandbox
            .shim
            .spawn(&self.config.shim_exe, &plan)
            .await
            .map_err(internal("failed to start sandbox shim"))?;
        // The shim answers only once the pod's PID namespace exists, which the containers join.
        sandbox.shim.watch().await.map_err(internal("failed to start sandbox shim"))?;
        if !record.host_network() {
            let ports = port_mappings(&record.config)?;
            // Recorded before attaching, so that the sandbox is detached even if this process dies in
            // between.
            let _attaching = self.attaching.read().await;
            self.save(sandbox, |record| record.attached = true).await?;
            let attached = self.network.attach(&pod_ref(&record), &netns(&state), &ports).await;
            let failed =
                |e| Status::unknown(format!("failed to setup network for sandbox \"{}\": {e}", record.id));
            let addresses = attached.map_err(failed)?;
            self.save(sandbox, |record| record.addresses = addresses.iter().map(IpAddr::to_string).collect())
                .await?;
        }
        self.save(sandbox, |record| record.ready = true).await
    }

    /// Changes a sandbox's record in memory and on disk.
    pub(super) async fn save(
        &self,
        sandbox: &Sandbox,
        change: impl FnOnce(&mut SandboxRecord),
    ) -> Result<(), Status> {
        let _one = sandbox.saving.lock().await;
        let record = {
            let mut record = sandbox.record.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut record);
            record.clone()
        };
        let path = self.paths.sandbox_root(&record.id).join(sandbox_file::RECORD);
        blocking(move || files::replace_json(&path, &record))
            .await?
            .map_err(internal("failed to record the sandbox"))
    }

    /// Returns the path of the pod's cgroup: the requested parent, below this node's own cgroup.
    fn pod_cgroup(&self, config: &v1::PodSandboxConfig, id: &str) -> PathBuf {
        let relative = |path: &Path| -> PathBuf {
            path.components().filter(|c| matches!(c, std::path::Component::Normal(_))).collect()
        };
        let root = relative(&self.config.cgroup_root);
        let parent = config.linux.as_ref().map(|l| relative(Path::new(&l.cgroup_parent))).unwrap_or_default();
        let below = match (parent.as_os_str().is_empty(), parent.starts_with(&root)) {
            (true, _) => root.join(id),
            (false, true) => parent,
            (false, false) => root.join(parent),
        };
        Path::new("/").join(below)
    }

    /// Ends all of the pod's processes and releases its network. Keeps the record.
    pub(super) async fn stop_sandbox(&self, id: &str) -> Result<(), Status> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let _gate = sandbox.gate.lock().await;
        self.stop_locked(&sandbox).await
    }

    async fn stop_locked(&self, sandbox: &Arc<Sandbox>) -> Result<(), Status> {
        let record = sandbox.record();
        // Failing to write the record, for example on a full disk, must not prevent the stop.
        if let Err(error) = self.save(sandbox, |record| record.ready = false).await {
            tracing::warn!(sandbox = record.id, %error, "the sandbox cannot be recorded as not ready");
        }
        let containers = self.containers_of(&record.id);
        for ended in join_all(containers.iter().map(|container| self.kill_container(container))).await {
            if let Err(error) = ended {
                tracing::warn!(sandbox = record.id, %error, "a container is ended together with the shim");
            }
        }
        match sandbox.shim.shutdown().await {
            Ok(()) => self.read_exits(&record.id),
            Err(ShimClientError::Unreachable(error)) if !sandbox.shim.is_alive() => {
                tracing::debug!(sandbox = record.id, %error, "the shim is gone already");
                self.end_leftovers(sandbox).await;
            }
            Err(error) => {
                tracing::warn!(sandbox = record.id, %error, "the shim does not end and is killed");
                sandbox.shim.kill();
                self.end_leftovers(sandbox).await;
            }
        }
        self.still_running(&record.id)?;
        let state = self.paths.sandbox_state(&record.id);
        self.release_network(sandbox).await?;
        blocking(move || sandbox::unmake(&state)).await?.map_err(internal("failed to take down sandbox"))?;
        if record.ready {
            self.publish(&record.id, &record.id, v1::ContainerEventType::ContainerStoppedEvent);
        }
        Ok(())
    }

    /// Fails if any of the pod's containers still has processes, which resist being killed.
    fn still_running(&self, sandbox: &str) -> Result<(), Status> {
        for container in self.containers_of(sandbox) {
            if !self.hierarchies.cgroup(&container.record.cgroup).processes().is_empty() {
                let text =
                    format!("failed to kill container \"{}\": its processes do not end", container.id());
                return Err(Status::deadline_exceeded(text));
            }
        }
        Ok(())
    }

    /// Removes the pod's sandbox with its containers, files and cgroup. Succeeds if there is no such sandbox.
    pub(super) async fn remove_sandbox(&self, id: &str) -> Result<(), Status> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let _gate = sandbox.gate.lock().await;
        let record = sandbox.record();
        self.stop_locked(&sandbox).await?;
        for container in self.containers_of(&record.id) {
            self.remove_container(container.id()).await?;
        }
        let (state, root) = (self.paths.sandbox_state(&record.id), self.paths.sandbox_root(&record.id));
        let cgroup = self.hierarchies.cgroup(&record.cgroup);
        blocking(move || {
            if record.own_cgroup
                && let Err(error) = cgroup.remove()
            {
                tracing::warn!(sandbox = record.id, %error, "the pod's cgroup could not be removed");
            }
            files::remove_tree(&state)?;
            files::remove_tree(&root)
        })
        .await?
        .map_err(internal("failed to remove sandbox files"))?;
        let id = sandbox.record().id;
        // Published while the sandbox is still in the tables, from which the event takes the pod's metadata.
        self.publish(&id, &id, v1::ContainerEventType::ContainerDeletedEvent);
        self.tables().sandboxes.remove(&id);
        self.release(&id);
        Ok(())
    }

    pub(super) fn sandbox_status(&self, id: &str) -> Result<v1::PodSandboxStatus, Status> {
        let record = self.sandbox(id)?.record();
        let mut addresses = record.addresses.iter().cloned();
        let network = v1::PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| v1::PodIp { ip }).collect(),
        };
        Ok(v1::PodSandboxStatus {
            metadata: record.config.metadata.clone(),
            state: state_of(&record).into(),
            created_at: record.created_at,
            network: Some(network),
            linux: Some(v1::LinuxPodSandboxStatus {
                namespaces: Some(v1::Namespace { options: Some(record.namespaces()) }),
            }),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
            runtime_handler: record.runtime_handler.clone(),
            id: record.id,
        })
    }

    pub(super) fn list_sandboxes(&self, filter: &v1::PodSandboxFilter) -> Vec<v1::PodSandbox> {
        let records = self.sandboxes().into_iter().map(|s| s.record());
        let wanted = records.filter(|record| {
            super::filter::id_matches(&record.id, &filter.id)
                && filter.state.as_ref().is_none_or(|s| s.state() == state_of(record))
                && super::filter::labels_match(&record.config.labels, &filter.label_selector)
        });
        wanted
            .map(|record| v1::PodSandbox {
                state: state_of(&record).into(),
                id: record.id,
                metadata: record.config.metadata,
                created_at: record.created_at,
                labels: record.config.labels,
                annotations: record.config.annotations,
                runtime_handler: record.runtime_handler,
            })
            .collect()
    }
}

fn state_of(record: &SandboxRecord) -> v1::PodSandboxState {
    match record.ready {
        true => v1::PodSandboxState::SandboxReady,
        false => v1::PodSandboxState::SandboxNotready,
    }
}

/// Returns the path of the pod's network namespace.
pub(super) fn netns(state: &Path) -> PathBuf {
    state.join(sandbox_file::NAMESPACES).join("net")
}

pub(super) fn pod_ref(record: &SandboxRecord) -> PodRef {
    let v1::PodSandboxMetadata { name, uid, namespace, .. } = record.metadata();
    PodRef { namespace, name, uid, sandbox_id: record.id.clone() }
}

/// Returns the host ports of the sandbox. Fails if the host address of one is malformed: the port must not be
/// open on all addresses instead.
fn port_mappings(config: &v1::PodSandboxConfig) -> Result<Vec<PortMapping>, Status> {
    let port = |n: i32| u16::try_from(n).ok().filter(|n| *n != 0);
    let mut mappings = Vec::new();
    for mapping in &config.port_mappings {
        // A mapping without a host port is left out.
        let (Some(container_port), Some(host_port)) = (port(mapping.container_port), port(mapping.host_port))
        else {
            continue;
        };
        let host_ip = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                Status::invalid_argument(format!("host port {host_port}: invalid host IP \"{text}\""))
            })?),
        };
        let protocol = match mapping.protocol() {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            v1::Protocol::Sctp => Protocol::Sctp,
        };
        mappings.push(PortMapping { protocol, container_port, host_port, host_ip });
    }
    Ok(mappings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_port_on_a_malformed_address_is_refused_and_not_opened_on_all() {
        let of = |host_ip: &str| {
            let mapping = v1::PortMapping {
                container_port: 80,
                host_port: 8080,
                host_ip: host_ip.into(),
                ..Default::default()
            };
            port_mappings(&v1::PodSandboxConfig { port_mappings: vec![mapping], ..Default::default() })
        };
        assert_eq!(of("").expect("all addresses")[0].host_ip, None);
        assert_eq!(of("::1").expect("one address")[0].host_ip, Some(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])));
        let error = of("127.0.0.1x").expect_err("malformed");
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
    }
}
