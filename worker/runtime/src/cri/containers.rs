//! Containers: create, start, stop, remove, status, update.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use k8s_cri::v1;
use nix::sys::signal::Signal;
use tonic::Status;

use super::plan::stop_signal;
use super::{Service, blocking, internal, new_id};
use crate::cgroup::Limits;
use crate::container::{Container, ContainerRecord, Progress};
use crate::files;
use crate::image::Image;
use crate::paths::container_file;
use crate::sandbox::Sandbox;
use crate::shim::client::ShimClientError;
use crate::shim::plan::{ExitRecord, now};

/// How long a killed container's end may take to be reported: output is drained first.
const KILL_WAIT: Duration = Duration::from_secs(30);

impl Service {
    /// Prepares a container: record, plan and directories. Nothing runs yet.
    pub(super) async fn create_container(
        &self,
        request: v1::CreateContainerRequest,
    ) -> Result<String, Status> {
        let config = request.config.ok_or_else(|| Status::invalid_argument("container config is missing"))?;
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        // Either before the sandbox is stopped, which then takes the container too, or refused.
        let _gate = sandbox.gate.lock().await;
        let pod = sandbox.record();
        if !pod.ready {
            return Err(Status::unknown(format!("sandbox container \"{}\" is not running", pod.id)));
        }
        let metadata = config
            .metadata
            .clone()
            .ok_or_else(|| Status::invalid_argument("container config must include metadata"))?;
        let wanted = config.image.clone().unwrap_or_default().image;
        let image = self.images.find(&wanted);
        let image = image
            .ok_or_else(|| Status::not_found(format!("failed to resolve image \"{wanted}\": not found")))?;
        let id = new_id();
        let owner = pod.metadata();
        let name = format!(
            "{}_{}_{}_{}_{}",
            metadata.name, owner.name, owner.namespace, owner.uid, metadata.attempt
        );
        self.reserve(&name, &id)?;
        let log_path = match config.log_path.is_empty() || pod.config.log_directory.is_empty() {
            true => None,
            false => Some(Path::new(&pod.config.log_directory).join(&config.log_path)),
        };
        let record = ContainerRecord {
            sandbox_id: pod.id.clone(),
            image_id: image.id.clone(),
            image_ref: image.reference(),
            layers: image.layers.clone(),
            created_at: now(),
            log_path,
            stop_signal: stop_signal(&image),
            cgroup: pod.cgroup.join(&id),
            id: id.clone(),
            config,
        };
        let container = Arc::new(Container::new(record, Progress::default(), sandbox.shim.clone()));
        // In the table before the first file, so that the image's layers stay.
        self.tables().containers.insert(id.clone(), container.clone());
        if let Err(error) = self.write_container(&sandbox, &container, &image).await {
            self.forget(&id).await?;
            return Err(error);
        }
        self.publish(&pod.id, &id, v1::ContainerEventType::ContainerCreatedEvent);
        Ok(id)
    }

    async fn write_container(
        &self,
        sandbox: &Arc<Sandbox>,
        container: &Arc<Container>,
        image: &Image,
    ) -> Result<(), Status> {
        let record = &container.record;
        let (root, bundle) = (self.paths.container_root(&record.id), self.paths.container_state(&record.id));
        let plan = self.launch_plan(sandbox, record, image)?;
        let saved = record.clone();
        let written = blocking(move || {
            std::fs::create_dir_all(&root)?;
            std::fs::create_dir_all(&bundle)?;
            files::replace_json(&root.join(container_file::RECORD), &saved)?;
            files::write_json(&bundle.join(container_file::PLAN), &plan)
        });
        written.await?.map_err(internal("failed to create container files"))
    }

    /// Starts a created container.
    pub(super) async fn start_container(&self, id: &str) -> Result<(), Status> {
        let container = self.container(id)?;
        let _gate = container.gate.lock().await;
        let state = container.progress.borrow().state();
        if state != v1::ContainerState::ContainerCreated {
            return Err(Status::unknown(format!(
                "container \"{}\" is in {} state",
                container.id(),
                state.as_str_name()
            )));
        }
        match container.shim.start(&self.paths.container_state(container.id())).await {
            Ok(started) => {
                container.progress.send_modify(|progress| progress.started = Some(started));
                self.publish(
                    &container.record.sandbox_id,
                    container.id(),
                    v1::ContainerEventType::ContainerStartedEvent,
                );
                Ok(())
            }
            // Whether it runs is not known: asking again will tell.
            Err(error @ (ShimClientError::Timeout | ShimClientError::Unreachable(_))) => {
                Err(internal(format!("failed to start container \"{}\"", container.id()))(error))
            }
            Err(error) => {
                let message = format!("failed to start container \"{}\": {error}", container.id());
                let exit = ExitRecord {
                    exit_code: 128,
                    finished_at: now(),
                    reason: "StartError".into(),
                    message: message.clone(),
                };
                let path = self.paths.container_root(container.id()).join(container_file::EXIT);
                files::replace_json(&path, &exit).map_err(internal("failed to record the exit"))?;
                self.ended(&container, exit);
                Err(Status::unknown(message))
            }
        }
    }

    /// Asks a container to end and kills it when `grace` has passed.
    pub(super) async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Status> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        if !container.progress.borrow().is_running() {
            return Ok(());
        }
        if !grace.is_zero() {
            match container.shim.signal(container.id(), container.record.stop_signal, false).await {
                Ok(()) | Err(ShimClientError::NotRunning) => {}
                Err(error) => {
                    tracing::warn!(container = container.id(), %error, "the stop signal could not be sent")
                }
            }
            if tokio::time::timeout(grace, container.ended()).await.is_ok() {
                return Ok(());
            }
        }
        self.kill_container(&container).await
    }

    /// Kills a container and waits for its end. One that does not run is left alone.
    pub(super) async fn kill_container(&self, container: &Arc<Container>) -> Result<(), Status> {
        if !container.progress.borrow().is_running() {
            return Ok(());
        }
        match container.shim.signal(container.id(), Signal::SIGKILL as i32, true).await {
            Ok(()) | Err(ShimClientError::NotRunning) => {}
            Err(error) if error.is_gone() => {
                // Without a shim there is the cgroup; the shim's watcher records the end.
                self.hierarchies.cgroup(&container.record.cgroup).kill();
            }
            Err(error) => {
                return Err(internal(format!("failed to kill container \"{}\"", container.id()))(error));
            }
        }
        let waited = tokio::time::timeout(KILL_WAIT, container.ended()).await;
        waited
            .map_err(|_| Status::deadline_exceeded(format!("container \"{}\" does not end", container.id())))
    }

    /// Removes a container, killing it first if it runs. Removing what is not here succeeds.
    pub(super) async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        let _gate = container.gate.lock().await;
        self.kill_container(&container).await?;
        let sandbox = container.record.sandbox_id.clone();
        self.forget(container.id()).await?;
        self.publish(&sandbox, container.id(), v1::ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// Removes a container's files and its place in the tables.
    pub(super) async fn forget(&self, id: &str) -> Result<(), Status> {
        let (root, bundle) = (self.paths.container_root(id), self.paths.container_state(id));
        let cgroup = self.container(id).ok().map(|c| self.hierarchies.cgroup(&c.record.cgroup));
        let owned = id.to_owned();
        blocking(move || {
            if let Some(Err(error)) = cgroup.map(|c| c.remove()) {
                tracing::warn!(container = owned, %error, "the container's cgroup could not be removed");
            }
            files::remove_tree(&bundle)?;
            files::remove_tree(&root)
        })
        .await?
        .map_err(internal("failed to remove container files"))?;
        self.tables().containers.remove(id);
        self.release(id);
        Ok(())
    }

    /// A container's state in CRI's words.
    pub(super) fn container_status(&self, container: &Container) -> v1::ContainerStatus {
        let record = &container.record;
        let progress = container.progress.borrow().clone();
        let exit = progress.exit.clone();
        let user = progress.started.as_ref().map(|started| v1::LinuxContainerUser {
            uid: started.user.uid.into(),
            gid: started.user.gid.into(),
            supplemental_groups: started.user.groups.iter().map(|g| i64::from(*g)).collect(),
        });
        let resources = container.resources.lock().unwrap_or_else(PoisonError::into_inner).clone();
        v1::ContainerStatus {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            state: progress.state().into(),
            created_at: record.created_at,
            started_at: progress.started.as_ref().map_or(0, |s| s.started_at),
            finished_at: exit.as_ref().map_or(0, |e| e.finished_at),
            exit_code: exit.as_ref().map_or(0, |e| e.exit_code),
            image: record.config.image.clone(),
            image_ref: record.image_ref.clone(),
            image_id: record.image_id.clone(),
            reason: exit.as_ref().map(|e| e.reason.clone()).unwrap_or_default(),
            message: exit.map(|e| e.message).unwrap_or_default(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
            mounts: record.config.mounts.clone(),
            log_path: record.log_path.as_ref().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default(),
            resources: resources.map(|linux| v1::ContainerResources { linux: Some(linux), windows: None }),
            user: user.map(|linux| v1::ContainerUser { linux: Some(linux) }),
        }
    }

    pub(super) fn list_containers(&self, filter: &v1::ContainerFilter) -> Vec<v1::Container> {
        let containers = self.containers();
        let wanted = containers.iter().filter(|container| {
            let record = &container.record;
            super::filter::id_matches(&record.id, &filter.id)
                && super::filter::id_matches(&record.sandbox_id, &filter.pod_sandbox_id)
                && filter.state.as_ref().is_none_or(|s| s.state() == container.progress.borrow().state())
                && super::filter::labels_match(&record.config.labels, &filter.label_selector)
        });
        wanted
            .map(|container| {
                let record = &container.record;
                v1::Container {
                    id: record.id.clone(),
                    pod_sandbox_id: record.sandbox_id.clone(),
                    metadata: record.config.metadata.clone(),
                    image: record.config.image.clone(),
                    image_ref: record.image_ref.clone(),
                    image_id: record.image_id.clone(),
                    state: container.progress.borrow().state().into(),
                    created_at: record.created_at,
                    labels: record.config.labels.clone(),
                    annotations: record.config.annotations.clone(),
                }
            })
            .collect()
    }

    /// Changes the limits of a container. Zeros and empty fields leave what is.
    pub(super) async fn update_container(
        &self,
        id: &str,
        wish: v1::LinuxContainerResources,
    ) -> Result<(), Status> {
        let container = self.container(id)?;
        let _gate = container.gate.lock().await;
        if !container.progress.borrow().is_running() {
            return Err(Status::unknown(format!("container \"{id}\" is not running")));
        }
        let positive = |n: i64| u64::try_from(n).ok().filter(|n| *n != 0);
        let text = |t: &String| Some(t.clone()).filter(|t| !t.is_empty());
        let limits = Limits {
            cpu_shares: positive(wish.cpu_shares),
            cpu_quota: Some(wish.cpu_quota).filter(|q| *q != 0),
            cpu_period: positive(wish.cpu_period),
            memory: Some(wish.memory_limit_in_bytes).filter(|m| *m != 0),
            cpuset_cpus: text(&wish.cpuset_cpus),
            cpuset_mems: text(&wish.cpuset_mems),
        };
        let cgroup = self.hierarchies.cgroup(&container.record.cgroup);
        let updated = blocking(move || cgroup.update(&limits)).await?;
        updated.map_err(internal(format!("failed to update resources of container \"{id}\"")))?;
        let mut resources = container.resources.lock().unwrap_or_else(PoisonError::into_inner);
        merge(resources.get_or_insert_default(), wish);
        Ok(())
    }
}

/// Takes over what `wish` sets.
fn merge(into: &mut v1::LinuxContainerResources, wish: v1::LinuxContainerResources) {
    let number = |old: &mut i64, new: i64| {
        if new != 0 {
            *old = new;
        }
    };
    number(&mut into.cpu_period, wish.cpu_period);
    number(&mut into.cpu_quota, wish.cpu_quota);
    number(&mut into.cpu_shares, wish.cpu_shares);
    number(&mut into.memory_limit_in_bytes, wish.memory_limit_in_bytes);
    number(&mut into.memory_swap_limit_in_bytes, wish.memory_swap_limit_in_bytes);
    if !wish.cpuset_cpus.is_empty() {
        into.cpuset_cpus = wish.cpuset_cpus;
    }
    if !wish.cpuset_mems.is_empty() {
        into.cpuset_mems = wish.cpuset_mems;
    }
}
