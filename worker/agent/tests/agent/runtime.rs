//! A fake container runtime: it records what the agent asks for, and the test decides what containers, calls
//! and images do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use k8s_cri::v1::image_service_server::{ImageService, ImageServiceServer};
use k8s_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use k8s_cri::v1::{self, ContainerState, PodSandboxState};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

#[derive(Clone)]
pub struct Sandbox {
    pub id: String,
    pub config: v1::PodSandboxConfig,
    pub handler: String,
    ready: bool,
    created_at: i64,
}

#[derive(Clone)]
pub struct Container {
    pub id: String,
    pub sandbox: String,
    pub config: v1::ContainerConfig,
    pub state: ContainerState,
    pub exit_code: i32,
    created_at: i64,
    finished_at: i64,
    /// Number of times that probe commands ran in the container.
    pub probed: usize,
}

impl Sandbox {
    pub fn ready(&self) -> bool {
        self.ready
    }
}

impl Container {
    pub fn name(&self) -> String {
        self.config.metadata.clone().unwrap_or_default().name
    }

    /// Returns whether the container belongs to the pod of this UID.
    pub fn is_of(&self, pod: &str) -> bool {
        self.config.labels.get("io.kubernetes.pod.uid").is_some_and(|uid| uid == pod)
    }
}

#[derive(Default)]
struct State {
    next: u64,
    clock: i64,
    sandboxes: Vec<Sandbox>,
    containers: Vec<Container>,
    /// Error that a method answers with, by method name.
    failing: BTreeMap<String, Status>,
    /// Methods, or `METHOD ID` for one object, that never answer.
    hanging: BTreeSet<String>,
    /// Exit code of commands run in containers.
    command: i32,
    conditions: Vec<(String, bool)>,
    images: BTreeSet<String>,
    handlers: Vec<v1::RuntimeHandler>,
    pulls: Vec<String>,
    removed: Vec<String>,
}

/// A handle on the fake runtime; clones share its state.
#[derive(Clone)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl FakeRuntime {
    /// Serves the fake runtime on a socket.
    pub fn serve(socket: &Path) -> Self {
        let state = State {
            clock: 1_700_000_000_000_000_000,
            conditions: vec![("RuntimeReady".to_owned(), true), ("NetworkReady".to_owned(), true)],
            images: ["test/image:1".to_owned()].into(),
            ..State::default()
        };
        let runtime = Self { state: Arc::new(Mutex::new(state)), changed: Arc::default() };
        let listener = UnixListener::bind(socket).expect("a socket");
        let server = tonic::transport::Server::builder()
            .add_service(RuntimeServiceServer::new(runtime.clone()))
            .add_service(ImageServiceServer::new(runtime.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(server);
        runtime
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while locked")
    }

    /// Makes a method fail with `error`, or succeed again if it is `None`.
    pub fn fail(&self, method: &str, error: Option<Status>) {
        let mut state = self.lock();
        match error {
            Some(error) => state.failing.insert(method.to_owned(), error),
            None => state.failing.remove(method),
        };
    }

    /// Makes a method, or `METHOD ID`, hang.
    pub fn hang(&self, what: &str) {
        self.lock().hanging.insert(what.to_owned());
    }

    pub fn set_condition(&self, name: &str, status: bool) {
        self.lock().conditions.iter_mut().filter(|c| c.0 == name).for_each(|c| c.1 = status);
    }

    pub fn set_clock(&self, nanos: i64) {
        self.lock().clock = nanos;
    }

    /// Sets the exit code of commands run in containers.
    pub fn commands_exit(&self, code: i32) {
        self.lock().command = code;
    }

    pub fn containers(&self) -> Vec<Container> {
        self.lock().containers.clone()
    }

    pub fn sandboxes(&self) -> Vec<Sandbox> {
        self.lock().sandboxes.clone()
    }

    pub fn pulls(&self) -> Vec<String> {
        self.lock().pulls.clone()
    }

    /// Returns the ids of removed containers.
    pub fn removed(&self) -> Vec<String> {
        self.lock().removed.clone()
    }

    /// Returns the newest container of this name.
    pub fn container(&self, name: &str) -> Option<Container> {
        self.lock().containers.iter().rev().find(|c| c.name() == name).cloned()
    }

    /// Adds an exited container whose pod the API server does not know; returns its id.
    pub fn add_orphan(&self, uid: &str) -> String {
        let mut state = self.lock();
        state.next += 1;
        let (id, sandbox) = (format!("orphan{}", state.next), format!("orphan-sandbox{}", state.next));
        let labels: HashMap<String, String> = [
            ("io.kubernetes.pod.uid".to_owned(), uid.to_owned()),
            ("io.kubernetes.container.name".to_owned(), "c".to_owned()),
        ]
        .into();
        let metadata = Some(v1::ContainerMetadata { name: "c".to_owned(), attempt: 0 });
        let config = v1::ContainerConfig { metadata, labels, ..Default::default() };
        state.containers.push(Container {
            id: id.clone(),
            sandbox,
            config,
            state: ContainerState::ContainerExited,
            exit_code: 0,
            created_at: 1,
            finished_at: 1,
            probed: 0,
        });
        id
    }

    /// Ends a running container with this exit code.
    pub fn kill(&self, id: &str, exit_code: i32) {
        self.end(id, exit_code);
        self.changed.notify_waiters();
    }

    fn end(&self, id: &str, exit_code: i32) {
        let mut state = self.lock();
        let now = wall_nanos();
        if let Some(container) = state.containers.iter_mut().find(|c| c.id == id)
            && container.state == ContainerState::ContainerRunning
        {
            container.state = ContainerState::ContainerExited;
            container.exit_code = exit_code;
            container.finished_at = now;
        }
    }

    /// Waits until `test` holds for the list of containers.
    pub async fn wait(&self, limit: Duration, test: impl Fn(&[Container]) -> bool) {
        let wait = async {
            while !test(&self.containers()) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        if tokio::time::timeout(limit, wait).await.is_err() {
            let seen: Vec<_> = self.containers().iter().map(|c| (c.id.clone(), c.name(), c.state)).collect();
            panic!("not in time: {seen:?}");
        }
    }

    async fn gate(&self, method: &str, id: &str) -> Result<(), Status> {
        let (failing, hanging) = {
            let state = self.lock();
            let hanging = state.hanging.contains(method) || state.hanging.contains(&format!("{method} {id}"));
            (state.failing.get(method).cloned(), hanging)
        };
        if hanging {
            std::future::pending::<()>().await;
        }
        failing.map_or(Ok(()), Err)
    }
}

fn wall_nanos() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

fn matches(filter: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    filter.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn missing(id: &str) -> Status {
    Status::not_found(format!("{id} not found"))
}

/// Implements methods that no test needs.
macro_rules! unneeded {
    ($($name:ident($request:ident) -> $answer:ident;)*) => {
        $(fn $name<'a, 'b>(
            &'a self,
            _: Request<v1::$request>,
        ) -> std::pin::Pin<Box<dyn Future<Output = Answer<v1::$answer>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

#[tonic::async_trait]
impl RuntimeService for FakeRuntime {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "fake".to_owned(),
            runtime_version: "1".to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        self.gate("RunPodSandbox", "").await?;
        let request = request.into_inner();
        let mut state = self.lock();
        state.next += 1;
        let id = format!("sandbox{}", state.next);
        let created_at = state.clock;
        let config = request.config.unwrap_or_default();
        let handler = request.runtime_handler;
        state.sandboxes.push(Sandbox { id: id.clone(), config, handler, ready: true, created_at });
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.gate("StopPodSandbox", &id).await?;
        self.lock().sandboxes.iter_mut().filter(|s| s.id == id).for_each(|s| s.ready = false);
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.gate("RemovePodSandbox", &id).await?;
        self.lock().sandboxes.retain(|s| s.id != id);
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.gate("PodSandboxStatus", &id).await?;
        let state = self.lock();
        let sandbox = state.sandboxes.iter().find(|s| s.id == id).ok_or_else(|| missing(&id))?;
        let status = v1::PodSandboxStatus {
            id,
            metadata: sandbox.config.metadata.clone(),
            state: sandbox_state(sandbox),
            created_at: sandbox.created_at,
            network: Some(v1::PodSandboxNetworkStatus { ip: "127.0.0.1".to_owned(), ..Default::default() }),
            labels: sandbox.config.labels.clone(),
            ..Default::default()
        };
        Ok(Response::new(v1::PodSandboxStatusResponse { status: Some(status), ..Default::default() }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        self.gate("ListPodSandbox", "").await?;
        let filter = request.into_inner().filter.unwrap_or_default().label_selector;
        let state = self.lock();
        let found = state.sandboxes.iter().filter(|s| matches(&filter, &s.config.labels));
        let items = found.map(|s| v1::PodSandbox {
            id: s.id.clone(),
            metadata: s.config.metadata.clone(),
            state: sandbox_state(s),
            created_at: s.created_at,
            labels: s.config.labels.clone(),
            ..Default::default()
        });
        Ok(Response::new(v1::ListPodSandboxResponse { items: items.collect() }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        self.gate("CreateContainer", "").await?;
        let request = request.into_inner();
        let mut state = self.lock();
        state.next += 1;
        let id = format!("container{}", state.next);
        let created_at = state.clock;
        state.containers.push(Container {
            id: id.clone(),
            sandbox: request.pod_sandbox_id,
            config: request.config.unwrap_or_default(),
            state: ContainerState::ContainerCreated,
            exit_code: 0,
            created_at,
            finished_at: 0,
            probed: 0,
        });
        Ok(Response::new(v1::CreateContainerResponse { container_id: id }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        let id = request.into_inner().container_id;
        self.gate("StartContainer", &id).await?;
        let mut state = self.lock();
        let container = state.containers.iter_mut().find(|c| c.id == id).ok_or_else(|| missing(&id))?;
        container.state = ContainerState::ContainerRunning;
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        let id = request.into_inner().container_id;
        self.gate("StopContainer", &id).await?;
        self.end(&id, 137);
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.gate("RemoveContainer", &id).await?;
        let mut state = self.lock();
        state.containers.retain(|c| c.id != id);
        state.removed.push(id);
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        self.gate("ListContainers", "").await?;
        let filter = request.into_inner().filter.unwrap_or_default().label_selector;
        let state = self.lock();
        let found = state.containers.iter().filter(|c| matches(&filter, &c.config.labels));
        let containers = found.map(|c| v1::Container {
            id: c.id.clone(),
            pod_sandbox_id: c.sandbox.clone(),
            metadata: c.config.metadata.clone(),
            state: c.state as i32,
            created_at: c.created_at,
            labels: c.config.labels.clone(),
            annotations: c.config.annotations.clone(),
            ..Default::default()
        });
        Ok(Response::new(v1::ListContainersResponse { containers: containers.collect() }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        self.gate("ContainerStatus", &id).await?;
        let state = self.lock();
        let container = state.containers.iter().find(|c| c.id == id).ok_or_else(|| missing(&id))?;
        let log_directory = state
            .sandboxes
            .iter()
            .find(|s| s.id == container.sandbox)
            .map(|s| s.config.log_directory.clone())
            .unwrap_or_default();
        let status = v1::ContainerStatus {
            id,
            metadata: container.config.metadata.clone(),
            state: container.state as i32,
            created_at: container.created_at,
            started_at: container.created_at,
            finished_at: container.finished_at,
            exit_code: container.exit_code,
            image: container.config.image.clone(),
            image_ref: "sha256:1".to_owned(),
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
            mounts: container.config.mounts.clone(),
            log_path: format!("{log_directory}/{}", container.config.log_path),
            ..Default::default()
        };
        Ok(Response::new(v1::ContainerStatusResponse { status: Some(status), ..Default::default() }))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        let id = request.into_inner().container_id;
        self.gate("ReopenContainerLog", &id).await?;
        let log_path = self.container_log(&id);
        std::fs::write(log_path, "").map_err(|e| Status::unknown(e.to_string()))?;
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        let id = request.into_inner().container_id;
        self.gate("ExecSync", &id).await?;
        let mut state = self.lock();
        let exit_code = state.command;
        state.containers.iter_mut().filter(|c| c.id == id).for_each(|c| c.probed += 1);
        Ok(Response::new(v1::ExecSyncResponse { exit_code, ..Default::default() }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        self.gate("Status", "").await?;
        let state = self.lock();
        let condition = |(name, status): &(String, bool)| v1::RuntimeCondition {
            r#type: name.clone(),
            status: *status,
            reason: if *status { String::new() } else { "Broken".to_owned() },
            message: if *status { String::new() } else { "it is broken".to_owned() },
        };
        let conditions = state.conditions.iter().map(condition).collect();
        let status = Some(v1::RuntimeStatus { conditions });
        Ok(Response::new(v1::StatusResponse {
            status,
            runtime_handlers: state.handlers.clone(),
            ..Default::default()
        }))
    }

    type GetContainerEventsStream = tokio_stream::Pending<Result<v1::ContainerEventResponse, Status>>;

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        Err(Status::unimplemented("GetContainerEvents"))
    }

    unneeded! {
        update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        exec(ExecRequest) -> ExecResponse;
        attach(AttachRequest) -> AttachResponse;
        port_forward(PortForwardRequest) -> PortForwardResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
        list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
    }
}

impl FakeRuntime {
    /// Returns the log file of a container.
    pub fn container_log(&self, id: &str) -> String {
        let state = self.lock();
        let container = state.containers.iter().find(|c| c.id == id).expect("the container");
        let sandbox = state.sandboxes.iter().find(|s| s.id == container.sandbox).expect("its sandbox");
        format!("{}/{}", sandbox.config.log_directory, container.config.log_path)
    }
}

fn sandbox_state(sandbox: &Sandbox) -> i32 {
    if sandbox.ready { PodSandboxState::SandboxReady as i32 } else { PodSandboxState::SandboxNotready as i32 }
}

#[tonic::async_trait]
impl ImageService for FakeRuntime {
    async fn list_images(&self, _: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        self.gate("ListImages", "").await?;
        Ok(Response::new(v1::ListImagesResponse { images: Vec::new() }))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        let image = request.into_inner().image.unwrap_or_default().image;
        self.gate("ImageStatus", &image).await?;
        let present = self.lock().images.contains(&image);
        let image =
            present.then(|| v1::Image { id: image, username: "daemon".to_owned(), ..Default::default() });
        Ok(Response::new(v1::ImageStatusResponse { image, ..Default::default() }))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        let image = request.into_inner().image.unwrap_or_default().image;
        self.lock().pulls.push(image.clone());
        self.gate("PullImage", &image).await?;
        let broken = image.starts_with("broken/");
        if broken {
            return Err(Status::unknown(format!("failed to pull \"{image}\": no such host")));
        }
        self.lock().images.insert(image.clone());
        Ok(Response::new(v1::PullImageResponse { image_ref: image }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        let image = request.into_inner().image.unwrap_or_default().image;
        self.lock().images.remove(&image);
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Answer<v1::ImageFsInfoResponse> {
        Ok(Response::new(v1::ImageFsInfoResponse::default()))
    }
}
