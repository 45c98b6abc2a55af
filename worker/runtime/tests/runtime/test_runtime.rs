//! A separate runtime for each test: the `ephor-runtime` program in a temporary directory and cgroup, used
//! over CRI, and checked to leave nothing behind.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyper_util::rt::TokioIo;
use k8s_cri::v1;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use proto_wire::image::LoadRequest;
use proto_wire::image::images_client::ImagesClient;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Deadline for any single step, long enough for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Returns whether this process may make namespaces and mounts; prints a note if not.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: this test makes namespaces, mounts and cgroups and needs root");
    }
    root
}

/// Returns the directory of images made by `tests/images/build`, which runs once.
pub fn images() -> Result<&'static Path> {
    static IMAGES: std::sync::OnceLock<Result<TempDir, String>> = std::sync::OnceLock::new();
    let built = IMAGES.get_or_init(|| {
        let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/images/build");
        let status = Command::new(script)
            .arg(directory.path())
            .stdout(Stdio::null())
            .status()
            .map_err(|e| e.to_string())?;
        if status.success() { Ok(directory) } else { Err(format!("tests/images/build: {status}")) }
    });
    built.as_ref().map(TempDir::path).map_err(|e| anyhow::anyhow!("{e}"))
}

/// A running runtime.
pub struct TestRuntime {
    pub directory: TempDir,
    pub cgroup: String,
    process: Child,
}

impl TestRuntime {
    pub async fn start() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let directory = tempfile::Builder::new().prefix("ephor-runtime-").tempdir()?;
        let cgroup = format!("/ephor-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let process = Self::spawn(directory.path(), &cgroup)?;
        let node = Self { directory, cgroup, process };
        node.wait_until_up().await?;
        Ok(node)
    }

    fn spawn(directory: &Path, cgroup: &str) -> Result<Child> {
        let log = std::fs::File::options().create(true).append(true).open(directory.join("runtime.log"))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_ephor-runtime"));
        command
            .arg("serve")
            .arg(directory)
            .arg(cgroup)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Ok(command.spawn()?)
    }

    async fn wait_until_up(&self) -> Result<()> {
        let start = Instant::now();
        while UnixStream::connect(self.directory.path().join("cri.sock")).await.is_err() {
            if start.elapsed() > PATIENCE {
                bail!("the runtime does not come up:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("runtime.log")).unwrap_or_default()
    }

    /// Kills the runtime with SIGKILL and starts it again.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = Self::spawn(self.directory.path(), &self.cgroup)?;
        self.wait_until_up().await
    }

    async fn channel(&self) -> Result<Channel> {
        let path = self.directory.path().join("cri.sock");
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        Ok(Endpoint::from_static("http://runtime").timeout(PATIENCE).connect_with_connector(connect).await?)
    }

    pub async fn runtime(&self) -> Result<RuntimeServiceClient<Channel>> {
        Ok(RuntimeServiceClient::new(self.channel().await?).max_decoding_message_size(64 << 20))
    }

    pub async fn image_service(&self) -> Result<ImageServiceClient<Channel>> {
        Ok(ImageServiceClient::new(self.channel().await?))
    }

    /// Loads an archive like `ephor image load`.
    pub async fn load(&self, archive: Vec<u8>) -> Result<Vec<String>> {
        let chunks: Vec<LoadRequest> =
            archive.chunks(1 << 20).map(|c| LoadRequest { data: c.to_vec() }).collect();
        let mut images = ImagesClient::new(self.channel().await?);
        Ok(images.load(tokio_stream::iter(chunks)).await?.into_inner().references)
    }

    /// Loads the image whose program sleeps, and returns its name.
    pub async fn load_sleeper(&self) -> Result<String> {
        let names = self.load(std::fs::read(images()?.join("sleeper-1.tar"))?).await?;
        names.into_iter().next().context("no name")
    }

    /// Runs a pod without containers.
    pub async fn run_pod(&self, name: &str) -> Result<Pod> {
        let own_pids = v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() };
        self.run_pod_with(name, own_pids).await
    }

    pub async fn run_pod_with(&self, name: &str, namespaces: v1::NamespaceOption) -> Result<Pod> {
        let context = v1::LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces.clone()),
            ..Default::default()
        };
        let linux = v1::LinuxPodSandboxConfig {
            cgroup_parent: format!("/kubepods/pod-{name}"),
            security_context: Some(context),
            ..Default::default()
        };
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self.directory.path().join("logs").join(name).to_string_lossy().into_owned(),
            linux: Some(linux),
            ..Default::default()
        };
        let request =
            v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let id = self.runtime().await?.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        Ok(Pod { id, config, namespaces })
    }

    /// Stops everything and checks that nothing is left; called at the end of every test.
    pub async fn finish(mut self, pods: &[&Pod]) -> Result<()> {
        let mut runtime = self.runtime().await?;
        for pod in pods {
            runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() }).await?;
            runtime
                .remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() })
                .await?;
        }
        let directory = self.directory.path().to_string_lossy().into_owned();
        ensure!(processes_with(&directory) == [self.process.id()], "a shim is left");
        let mounts: Vec<String> = mounts_below(&directory);
        ensure!(mounts.len() <= 1, "mounts are left: {mounts:?}");
        for cgroup in self.cgroups() {
            let pods = std::fs::read_dir(cgroup.join("kubepods")).into_iter().flatten().flatten();
            let left: Vec<PathBuf> = pods.map(|e| e.path()).filter(|p| p.is_dir()).collect();
            ensure!(left.is_empty(), "cgroups are left: {left:?}");
        }
        for left in
            ["root/sandboxes", "root/containers", "state/sandboxes", "state/containers", "state/libcontainer"]
        {
            let entries = std::fs::read_dir(self.directory.path().join(left))?.count();
            ensure!(entries == 0, "{left} is not empty");
        }
        self.process.kill()?;
        self.process.wait()?;
        self.clean_up()
    }

    /// Removes everything like `ephor reset`, and checks that nothing is left.
    pub fn clean_up(&mut self) -> Result<()> {
        // The runtime may have been killed before.
        let _ = self.process.kill();
        self.process.wait()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_ephor-runtime"));
        let output = command.arg("cleanup").arg(self.directory.path()).arg(&self.cgroup).output()?;
        ensure!(output.status.success(), "cleanup: {}", String::from_utf8_lossy(&output.stderr));
        let directory = self.directory.path().to_string_lossy().into_owned();
        ensure!(processes_with(&directory).is_empty(), "a process is left after the cleanup");
        ensure!(mounts_below(&directory).is_empty(), "a mount is left after the cleanup");
        ensure!(self.cgroups().is_empty(), "a cgroup is left after the cleanup");
        Ok(())
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let name = self.cgroup.trim_start_matches('/');
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let mut all: Vec<PathBuf> = hierarchies.map(|h| h.path().join(name)).collect();
        all.push(Path::new("/sys/fs/cgroup").join(name));
        all.into_iter().filter(|p| p.exists()).collect()
    }
}

impl Drop for TestRuntime {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("runtime log:\n{}", self.log());
        }
        if let Err(error) = self.clean_up() {
            eprintln!("clean-up: {error:#}");
        }
    }
}

fn processes_with(directory: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|p| p.file_name().to_str().and_then(|n| n.parse::<u32>().ok()));
    ids.filter(|id| {
        let command = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(directory)
    })
    .collect()
}

fn mounts_below(directory: &str) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| point.starts_with(directory)).map(str::to_owned).collect()
}

/// A pod of a test.
pub struct Pod {
    pub id: String,
    pub config: v1::PodSandboxConfig,
    namespaces: v1::NamespaceOption,
}

impl Pod {
    /// Returns the configuration of a container that runs `script` in a shell.
    pub fn script(&self, name: &str, script: &str) -> v1::ContainerConfig {
        let context = v1::LinuxContainerSecurityContext {
            namespace_options: Some(self.namespaces.clone()),
            ..Default::default()
        };
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: "ephor.test/sleeper:1".into(), ..Default::default() }),
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            labels: HashMap::from([("io.kubernetes.container.name".into(), name.into())]),
            log_path: format!("{name}.log"),
            linux: Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() }),
            ..Default::default()
        }
    }

    pub async fn create(&self, node: &TestRuntime, config: v1::ContainerConfig) -> Result<String> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        Ok(node.runtime().await?.create_container(request).await?.into_inner().container_id)
    }

    /// Creates and starts a container.
    pub async fn run(&self, node: &TestRuntime, config: v1::ContainerConfig) -> Result<String> {
        let id = self.create(node, config).await?;
        node.runtime().await?.start_container(v1::StartContainerRequest { container_id: id.clone() }).await?;
        Ok(id)
    }

    /// Returns the lines of a container's log, without times.
    pub fn log(&self, name: &str) -> Vec<String> {
        let path = Path::new(&self.config.log_directory).join(format!("{name}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| line.split_once(' ').map_or("", |x| x.1).to_owned()).collect()
    }
}

pub async fn status(node: &TestRuntime, container: &str) -> Result<v1::ContainerStatus> {
    let request = v1::ContainerStatusRequest { container_id: container.into(), verbose: true };
    node.runtime().await?.container_status(request).await?.into_inner().status.context("no status")
}

/// Waits until the container has ended; returns its status.
pub async fn ended(node: &TestRuntime, container: &str) -> Result<v1::ContainerStatus> {
    let start = Instant::now();
    loop {
        let status = status(node, container).await?;
        if status.state() == v1::ContainerState::ContainerExited {
            return Ok(status);
        }
        ensure!(start.elapsed() < PATIENCE, "the container does not end: {status:?}\n{}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until `condition` is true.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !condition() {
        ensure!(start.elapsed() < PATIENCE, "it does not come true that {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

pub async fn exec(
    node: &TestRuntime,
    container: &str,
    script: &str,
    timeout: i64,
) -> Result<v1::ExecSyncResponse, tonic::Status> {
    let cmd = vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let mut runtime = node.runtime().await.map_err(|e| tonic::Status::internal(e.to_string()))?;
    let request = v1::ExecSyncRequest { container_id: container.into(), cmd, timeout };
    runtime.exec_sync(request).await.map(tonic::Response::into_inner)
}
