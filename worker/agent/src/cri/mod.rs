//! The CRI client: one method for each CRI call, each with a deadline; errors name their method.

pub mod events;
pub mod labels;
pub mod snapshot;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{self as api};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::Error;

/// Deadline of ordinary calls, as in kubelet.
const DEADLINE: Duration = Duration::from_secs(120);
/// Deadline of an image pull, which may move gigabytes (kubelet bounds pulls by progress instead).
const PULL_DEADLINE: Duration = Duration::from_secs(3600);
/// Maximum size of an answer, kubelet's limit: answers list every image or container of a node.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// A handle on the runtime; cheap to clone. It connects on first use and reconnects after a loss.
#[derive(Clone, Debug)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    /// Notified when this client starts a container: more state changes in the runtime are likely to follow
    /// soon.
    activity: Arc<Notify>,
}

impl Cri {
    /// Creates a client for the runtime listening on `socket`, without connecting yet.
    pub fn connect(socket: &Path) -> Result<Self, Error> {
        let path = PathBuf::from(socket);
        // The address is never used: the connector opens the socket.
        let endpoint = Endpoint::try_from("http://runtime.sock")
            .map_err(|e| Error::Runtime { path: path.clone(), message: e.to_string() })?;
        let channel = endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        }));
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES),
            activity: Arc::new(Notify::new()),
        })
    }

    /// Waits until this client or a clone of it starts a container.
    pub async fn started_something(&self) {
        self.activity.notified().await;
    }

    /// Returns the runtime's name, version and API version.
    pub async fn version(&self) -> Result<api::VersionResponse, Error> {
        let mut client = self.runtime.clone();
        let request = api::VersionRequest { version: "0.1.0".to_owned() };
        call("Version", Duration::from_secs(10), client.version(request)).await
    }

    /// Returns the runtime's conditions (RuntimeReady, NetworkReady).
    pub async fn status(&self) -> Result<api::StatusResponse, Error> {
        let mut client = self.runtime.clone();
        call("Status", DEADLINE, client.status(api::StatusRequest { verbose: false })).await
    }

    /// Returns the image the runtime uses for sandboxes; `None` if the runtime does not report it (containerd
    /// does, in its verbose status).
    pub async fn sandbox_image(&self) -> Result<Option<String>, Error> {
        let mut client = self.runtime.clone();
        let answer = call("Status", DEADLINE, client.status(api::StatusRequest { verbose: true })).await?;
        let config =
            answer.info.get("config").and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        Ok(config.and_then(|config| config["sandboxImage"].as_str().map(str::to_owned)))
    }

    /// Creates and starts a sandbox with the named runtime handler (empty for the default); returns its id.
    pub async fn run_pod_sandbox(
        &self,
        config: api::PodSandboxConfig,
        runtime_handler: String,
    ) -> Result<String, Error> {
        let mut client = self.runtime.clone();
        let request = api::RunPodSandboxRequest { config: Some(config), runtime_handler };
        let answer = call("RunPodSandbox", DEADLINE * 2, client.run_pod_sandbox(request)).await?;
        Ok(answer.pod_sandbox_id)
    }

    /// Stops all containers in a sandbox and releases its network.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<(), Error> {
        let mut client = self.runtime.clone();
        let request = api::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        call("StopPodSandbox", DEADLINE, client.stop_pod_sandbox(request)).await.map(drop)
    }

    /// Removes a sandbox with its containers.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<(), Error> {
        let mut client = self.runtime.clone();
        let request = api::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        call("RemovePodSandbox", DEADLINE, client.remove_pod_sandbox(request)).await.map(drop)
    }

    /// Returns the status of one sandbox, with its network; `None` if the answer has no status.
    pub async fn pod_sandbox_status(&self, id: &str) -> Result<Option<api::PodSandboxStatus>, Error> {
        let mut client = self.runtime.clone();
        let request = api::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        Ok(call("PodSandboxStatus", DEADLINE, client.pod_sandbox_status(request)).await?.status)
    }

    /// Lists sandboxes: those of the pod `uid`, or all if it is `None`.
    pub async fn list_pod_sandboxes(&self, uid: Option<&str>) -> Result<Vec<api::PodSandbox>, Error> {
        let mut client = self.runtime.clone();
        let filter = uid.map(|uid| api::PodSandboxFilter {
            label_selector: [(labels::POD_UID.to_owned(), uid.to_owned())].into(),
            ..Default::default()
        });
        let request = api::ListPodSandboxRequest { filter };
        Ok(call("ListPodSandbox", DEADLINE, client.list_pod_sandbox(request)).await?.items)
    }

    /// Creates a container; returns its id.
    pub async fn create_container(
        &self,
        sandbox: &str,
        config: api::ContainerConfig,
        sandbox_config: api::PodSandboxConfig,
    ) -> Result<String, Error> {
        let mut client = self.runtime.clone();
        let request = api::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        Ok(call("CreateContainer", DEADLINE, client.create_container(request)).await?.container_id)
    }

    /// Starts a created container.
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let mut client = self.runtime.clone();
        let request = api::StartContainerRequest { container_id: id.to_owned() };
        let outcome = call("StartContainer", DEADLINE, client.start_container(request)).await.map(drop);
        self.activity.notify_one();
        outcome
    }

    /// Stops a container: sends its stop signal, then SIGKILL after `grace_seconds`.
    pub async fn stop_container(&self, id: &str, grace_seconds: i64) -> Result<(), Error> {
        let mut client = self.runtime.clone();
        let request = api::StopContainerRequest { container_id: id.to_owned(), timeout: grace_seconds };
        let deadline = DEADLINE + Duration::from_secs(grace_seconds.max(0).unsigned_abs());
        call("StopContainer", deadline, client.stop_container(request)).await.map(drop)
    }

    /// Removes a stopped container.
    pub async fn remove_container(&self, id: &str) -> Result<(), Error> {
        let mut client = self.runtime.clone();
        let request = api::RemoveContainerRequest { container_id: id.to_owned() };
        call("RemoveContainer", DEADLINE, client.remove_container(request)).await.map(drop)
    }

    /// Lists containers: those of the pod `uid`, or all if it is `None`.
    pub async fn list_containers(&self, uid: Option<&str>) -> Result<Vec<api::Container>, Error> {
        let mut client = self.runtime.clone();
        let filter = uid.map(|uid| api::ContainerFilter {
            label_selector: [(labels::POD_UID.to_owned(), uid.to_owned())].into(),
            ..Default::default()
        });
        let request = api::ListContainersRequest { filter };
        Ok(call("ListContainers", DEADLINE, client.list_containers(request)).await?.containers)
    }

    /// Returns the status of one container; `None` if the answer has no status.
    pub async fn container_status(&self, id: &str) -> Result<Option<api::ContainerStatus>, Error> {
        let mut client = self.runtime.clone();
        let request = api::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        Ok(call("ContainerStatus", DEADLINE, client.container_status(request)).await?.status)
    }

    /// Tells the runtime to reopen a container's log file, which has been renamed.
    pub async fn reopen_container_log(&self, id: &str) -> Result<(), Error> {
        let mut client = self.runtime.clone();
        let request = api::ReopenContainerLogRequest { container_id: id.to_owned() };
        call("ReopenContainerLog", DEADLINE, client.reopen_container_log(request)).await.map(drop)
    }

    /// Runs a command in a container and waits for it; the runtime kills it after `timeout`.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<api::ExecSyncResponse, Error> {
        let mut client = self.runtime.clone();
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let request =
            api::ExecSyncRequest { container_id: id.to_owned(), cmd: command.to_vec(), timeout: seconds };
        // Timeout 0 sets no limit in the runtime; the caller limits a hook by the grace period.
        let deadline = if seconds == 0 { PULL_DEADLINE } else { timeout + Duration::from_secs(5) };
        call("ExecSync", deadline, client.exec_sync(request)).await
    }

    /// Prepares an exec; returns its URL at the runtime's streaming server.
    pub async fn exec(&self, request: api::ExecRequest) -> Result<String, Error> {
        let mut client = self.runtime.clone();
        Ok(call("Exec", DEADLINE, client.exec(request)).await?.url)
    }

    /// Prepares an attach; returns its URL at the runtime's streaming server.
    pub async fn attach(&self, request: api::AttachRequest) -> Result<String, Error> {
        let mut client = self.runtime.clone();
        Ok(call("Attach", DEADLINE, client.attach(request)).await?.url)
    }

    /// Prepares a port-forward; returns its URL at the runtime's streaming server.
    pub async fn port_forward(&self, sandbox: &str, ports: Vec<i32>) -> Result<String, Error> {
        let mut client = self.runtime.clone();
        let request = api::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: ports };
        Ok(call("PortForward", DEADLINE, client.port_forward(request)).await?.url)
    }

    /// Returns CPU and memory usage of every container.
    pub async fn list_container_stats(&self) -> Result<Vec<api::ContainerStats>, Error> {
        let mut client = self.runtime.clone();
        let request = api::ListContainerStatsRequest { filter: None };
        Ok(call("ListContainerStats", DEADLINE, client.list_container_stats(request)).await?.stats)
    }

    /// Opens the stream of container events; an error with code Unimplemented means that the runtime has no
    /// events.
    pub async fn container_events(&self) -> Result<tonic::Streaming<api::ContainerEventResponse>, Error> {
        let mut client = self.runtime.clone();
        call(
            "GetContainerEvents",
            Duration::from_secs(10),
            client.get_container_events(api::GetEventsRequest {}),
        )
        .await
    }

    /// Returns an image by reference; `None` if it is not on the node.
    pub async fn image_status(&self, image: &str) -> Result<Option<api::Image>, Error> {
        let mut client = self.images.clone();
        let request = api::ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        Ok(call("ImageStatus", DEADLINE, client.image_status(request)).await?.image)
    }

    /// Lists every image on the node.
    pub async fn list_images(&self) -> Result<Vec<api::Image>, Error> {
        let mut client = self.images.clone();
        Ok(call("ListImages", DEADLINE, client.list_images(api::ListImagesRequest { filter: None }))
            .await?
            .images)
    }

    /// Pulls an image; returns its reference.
    pub async fn pull_image(
        &self,
        image: &str,
        auth: Option<api::AuthConfig>,
        sandbox_config: Option<api::PodSandboxConfig>,
    ) -> Result<String, Error> {
        let mut client = self.images.clone();
        let request = api::PullImageRequest { image: Some(image_spec(image)), auth, sandbox_config };
        Ok(call("PullImage", PULL_DEADLINE, client.pull_image(request)).await?.image_ref)
    }

    /// Removes an image.
    pub async fn remove_image(&self, image: &str) -> Result<(), Error> {
        let mut client = self.images.clone();
        let request = api::RemoveImageRequest { image: Some(image_spec(image)) };
        call("RemoveImage", DEADLINE, client.remove_image(request)).await.map(drop)
    }

    /// Returns usage of the file systems that hold images.
    pub async fn image_fs_info(&self) -> Result<api::ImageFsInfoResponse, Error> {
        let mut client = self.images.clone();
        call("ImageFsInfo", DEADLINE, client.image_fs_info(api::ImageFsInfoRequest {})).await
    }
}

/// Converts an image reference to its CRI form.
pub fn image_spec(image: &str) -> api::ImageSpec {
    api::ImageSpec { image: image.to_owned(), user_specified_image: image.to_owned(), ..Default::default() }
}

async fn call<T>(
    method: &'static str,
    deadline: Duration,
    request: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout(deadline, request).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Error::Cri { method, status: Box::new(status) }),
        Err(_) => Err(Error::CriDeadline { method, seconds: deadline.as_secs() }),
    }
}
