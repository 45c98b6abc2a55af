//! Containers: create, start, stop, remove, status, update.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use k8s_cri::v1;
use nix::sys::signal::Signal;
use tonic::Status;

use super::launch_plan::stop_signal;
use super::watch::RETRY;
use super::{Service, blocking, internal, new_id};
use crate::cgroup::CgroupLimits;
use crate::container::{Container, ContainerProgress, ContainerRecord};
use crate::files;
use crate::image::Image;
use crate::paths::container_file;
use crate::sandbox::Sandbox;
use crate::shim::client::ShimClientError;
use crate::shim::plan::{ExitRecord, now};
use crate::shim::rootfs;

/// Maximum time to wait for the report of a killed container's end; the shim first drains the output.
const KILL_WAIT: Duration = Duration::from_secs(30);

impl Service {
    /// Prepares a container: record, plan and directories. Starts no process.
    pub(super) async fn create_container(
        &self,
        request: v1::CreateContainerRequest,
    ) -> Result<String, Status> {
        let config = request.config.ok_or_else(|| Status::invalid_argument("container config is missing"))?;
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        // Under the gate a container is created either before its sandbox is stopped, which then stops the
        // container too, or not at all.
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
        let container = Arc::new(Container::new(record, ContainerProgress::default(), sandbox.shim.clone()));
        // Added to the table before any file is written, so that the image's layers are not collected.
        self.tables().containers.insert(id.clone(), container.clone());
        let written = match self.images.find(&image.id) {
            Some(_) => self.write_container(&sandbox, &container, &image).await,
            // The image was removed before the container held its layers.
            None => Err(Status::not_found(format!("failed to resolve image \"{wanted}\": not found"))),
        };
        if let Err(error) = written {
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
        files::make_private_directory(&bundle).map_err(internal("failed to create container files"))?;
        let (id, checked) = (record.id.clone(), plan.clone());
        blocking(move || rootfs::check_user(&checked))
            .await?
            .map_err(internal(format!("failed to generate container \"{id}\" spec")))?;
        let saved = record.clone();
        let written = blocking(move || {
            files::make_private_directory(&root)?;
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
        // Marked by a file, so that after a restart the runtime does not take the container for never
        // started.
        let marker = self.paths.container_root(container.id()).join(container_file::STARTING);
        files::create_private(&marker).map_err(internal("failed to record the start"))?;
        match self.ask_to_start(&container).await {
            Some(outcome) => outcome,
            None => {
                self.await_start(container.clone());
                let text = format!(
                    "failed to start container \"{}\": the pod's shim did not answer in time",
                    container.id()
                );
                Err(Status::deadline_exceeded(text))
            }
        }
    }

    /// Asks the shim to start the container and records the answer; the shim does nothing if the container
    /// runs or has ended. `None` if it is unknown whether the container runs.
    async fn ask_to_start(&self, container: &Arc<Container>) -> Option<Result<(), Status>> {
        match container.shim.start(&self.paths.container_state(container.id())).await {
            Ok(started) => {
                container.progress.send_modify(|progress| {
                    progress.started = Some(started);
                    progress.unsure = false;
                });
                self.read_exits(&container.record.sandbox_id);
                self.publish(
                    &container.record.sandbox_id,
                    container.id(),
                    v1::ContainerEventType::ContainerStartedEvent,
                );
                Some(Ok(()))
            }
            Err(error @ (ShimClientError::Timeout | ShimClientError::Unreachable(_)))
                if !container.shim.has_gone(&error) =>
            {
                tracing::warn!(container = container.id(), %error, "whether the container runs is not known");
                None
            }
            Err(error) => {
                let message = format!("failed to start container \"{}\": {error}", container.id());
                let exit = ExitRecord {
                    exit_code: 128,
                    finished_at: now(),
                    reason: "StartError".into(),
                    message: message.clone(),
                };
                self.record_end(container, exit);
                Some(Err(Status::unknown(message)))
            }
        }
    }

    /// Repeats a start request whose answer was lost, because the container may run. Until it is answered
    /// the container's state is "unknown", so that the agent does not start a replacement.
    pub(super) fn await_start(&self, container: Arc<Container>) {
        container.progress.send_modify(|progress| progress.unsure = true);
        let service = self.clone();
        tokio::spawn(proto_env::supervise::supervise("runtime-start", move || {
            let (service, container) = (service.clone(), container.clone());
            async move {
                while container.progress.borrow().exit.is_none() && service.container(container.id()).is_ok()
                {
                    if service.ask_to_start(&container).await.is_some() {
                        return;
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }));
    }

    /// Sends the container its stop signal and kills it once `grace` has passed.
    pub(super) async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Status> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        self.settled(&container).await?;
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

    /// Kills a container and waits for its end. Does nothing if the container does not run.
    pub(super) async fn kill_container(&self, container: &Arc<Container>) -> Result<(), Status> {
        self.settled(container).await?;
        if !container.progress.borrow().is_running() {
            return Ok(());
        }
        match container.shim.signal(container.id(), Signal::SIGKILL as i32, true).await {
            Ok(()) => {}
            // The container ended by itself: the shim reports its end or has written the exit record.
            Err(ShimClientError::NotRunning) => self.read_exits(&container.record.sandbox_id),
            Err(error) => {
                // If the shim cannot kill the container, kill its cgroup directly.
                tracing::warn!(container = container.id(), %error, "the shim does not kill the container");
                let cgroup = self.hierarchies.cgroup(&container.record.cgroup);
                blocking(move || cgroup.kill_all())
                    .await?
                    .map_err(internal(format!("failed to kill container \"{}\"", container.id())))?;
                if container.shim.is_alive() && !matches!(error, ShimClientError::Timeout) {
                    self.read_exits(&container.record.sandbox_id);
                } else {
                    return self.ended_untold(container);
                }
            }
        }
        if tokio::time::timeout(KILL_WAIT, container.ended()).await.is_ok() {
            return Ok(());
        }
        self.ended_untold(container)
    }

    /// Records the end of a container whose shim does not report it. Fails if one of its processes is left.
    fn ended_untold(&self, container: &Arc<Container>) -> Result<(), Status> {
        self.read_exits(&container.record.sandbox_id);
        if !self.hierarchies.cgroup(&container.record.cgroup).processes().is_empty() {
            return Err(Status::deadline_exceeded(format!("container \"{}\" does not end", container.id())));
        }
        if container.progress.borrow().exit.is_none() {
            let message = "the container's shim did not tell how it ended".to_owned();
            let exit = ExitRecord { exit_code: 255, finished_at: now(), reason: "Unknown".into(), message };
            self.record_end(container, exit);
        }
        Ok(())
    }

    /// Waits until it is known whether the container was started.
    async fn settled(&self, container: &Container) -> Result<(), Status> {
        let waited = tokio::time::timeout(KILL_WAIT, container.settled()).await;
        waited.map_err(|_| {
            Status::deadline_exceeded(format!("whether container \"{}\" runs is not known", container.id()))
        })
    }

    /// Removes a container, killing it first if it runs. Succeeds if there is no such container.
    pub(super) async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        let _gate = container.gate.lock().await;
        self.kill_container(&container).await?;
        let sandbox = container.record.sandbox_id.clone();
        self.forget(container.id()).await?;
        self.publish(&sandbox, container.id(), v1::ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// Deletes a container's files and removes it from the tables.
    pub(super) async fn forget(&self, id: &str) -> Result<(), Status> {
        let (root, bundle) = (self.paths.container_root(id), self.paths.container_state(id));
        let cgroup = self.container(id).ok().map(|c| self.hierarchies.cgroup(&c.record.cgroup));
        let (owned, state) = (id.to_owned(), self.paths.libcontainer().join(id));
        blocking(move || {
            if let Some(Err(error)) = cgroup.map(|c| c.remove()) {
                tracing::warn!(container = owned, %error, "the container's cgroup could not be removed");
            }
            // The shim removes libcontainer's state; this covers a shim that is gone.
            files::remove_tree(&state)?;
            files::remove_tree(&bundle)?;
            files::remove_tree(&root)
        })
        .await?
        .map_err(internal("failed to remove container files"))?;
        self.tables().containers.remove(id);
        self.release(id);
        Ok(())
    }

    /// Returns a container's status as CRI defines it.
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

    /// Changes the resource limits of a container. Zeros and empty fields leave the present value.
    pub(super) async fn update_container(
        &self,
        id: &str,
        update: v1::LinuxContainerResources,
    ) -> Result<(), Status> {
        let container = self.container(id)?;
        let _gate = container.gate.lock().await;
        if !container.progress.borrow().is_running() {
            return Err(Status::unknown(format!("container \"{id}\" is not running")));
        }
        let positive = |n: i64| u64::try_from(n).ok().filter(|n| *n != 0);
        let text = |t: &String| Some(t.clone()).filter(|t| !t.is_empty());
        let limits = CgroupLimits {
            cpu_shares: positive(update.cpu_shares),
            cpu_quota: Some(update.cpu_quota).filter(|q| *q != 0),
            cpu_period: positive(update.cpu_period),
            memory: Some(update.memory_limit_in_bytes).filter(|m| *m != 0),
            cpuset_cpus: text(&update.cpuset_cpus),
            cpuset_mems: text(&update.cpuset_mems),
        };
        let cgroup = self.hierarchies.cgroup(&container.record.cgroup);
        let updated = blocking(move || cgroup.update(&limits)).await?;
        updated.map_err(internal(format!("failed to update resources of container \"{id}\"")))?;
        let mut resources = container.resources.lock().unwrap_or_else(PoisonError::into_inner);
        merge(resources.get_or_insert_default(), update);
        Ok(())
    }
}

/// Copies the fields that `update` sets to `into`; zeros and empty fields leave the present value.
fn merge(into: &mut v1::LinuxContainerResources, update: v1::LinuxContainerResources) {
    let number = |old: &mut i64, new: i64| {
        if new != 0 {
            *old = new;
        }
    };
    number(&mut into.cpu_period, update.cpu_period);
    number(&mut into.cpu_quota, update.cpu_quota);
    number(&mut into.cpu_shares, update.cpu_shares);
    number(&mut into.memory_limit_in_bytes, update.memory_limit_in_bytes);
    number(&mut into.memory_swap_limit_in_bytes, update.memory_swap_limit_in_bytes);
    if !update.cpuset_cpus.is_empty() {
        into.cpuset_cpus = update.cpuset_cpus;
    }
    if !update.cpuset_mems.is_empty() {
        into.cpuset_mems = update.cpuset_mems;
    }
}
