//! The world of one test: directories, a fake runtime, a fake API server, and the agent between them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use worker_agent::AgentConfig;

use crate::fake_api::FakeApi;
use crate::fake_runtime::FakeRuntime;

/// Limit of waits. Tokio's clock is paused, so that waiting takes no real time.
pub const LIMIT: Duration = Duration::from_secs(3600);

pub struct World {
    pub dir: tempfile::TempDir,
    pub api: FakeApi,
    pub runtime: FakeRuntime,
    agent: Option<(CancellationToken, JoinHandle<()>)>,
}

impl World {
    /// Starts the fakes and the agent.
    pub fn start() -> Self {
        // Fails if another test of the process has already set it, which is fine.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let dir = tempfile::tempdir().expect("a directory");
        let runtime = FakeRuntime::serve(&dir.path().join("cri.sock"));
        let mut world = Self { dir, api: FakeApi::default(), runtime, agent: None };
        world.start_agent();
        world
    }

    fn start_agent(&mut self) {
        self.start_agent_with(|_| {});
    }

    /// Starts the agent with a configuration changed by `change`.
    pub fn start_agent_with(&mut self, change: impl FnOnce(&mut AgentConfig)) {
        let mut config = config(self.dir.path());
        change(&mut config);
        let stop = CancellationToken::new();
        let run = worker_agent::run(config, self.api.client(), stop.clone());
        let agent = tokio::spawn(async move { run.await.expect("the agent") });
        self.agent = Some((stop, agent));
    }

    /// Stops the agent; the runtime keeps running.
    pub async fn stop_agent(&mut self) {
        if let Some((stop, agent)) = self.agent.take() {
            stop.cancel();
            agent.await.expect("no panic");
        }
    }

    /// Stops the agent and starts a new one.
    pub async fn restart_agent(&mut self) {
        self.stop_agent().await;
        self.start_agent();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|m| Path::new(m).starts_with(self.dir.path()));
        for mounted in below {
            if let Err(error) = nix::mount::umount2(mounted, nix::mount::MntFlags::MNT_DETACH) {
                eprintln!("{mounted} is left: {error}");
            }
        }
        remove_cgroups();
    }
}

fn config(dir: &Path) -> AgentConfig {
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoCertificate));
    let (_, serving) = watch::channel(Arc::new(tls));
    let mut config =
        AgentConfig::new("node1", [127, 0, 0, 1].into(), dir.join("cri.sock"), dir.join("agent"), serving);
    config.listen = ([127, 0, 0, 1], 0).into();
    config.cgroup_root = cgroup_root();
    config.capacity = [("cpu", "8"), ("memory", "8Gi")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    config
}

fn cgroup_root() -> String {
    format!("/ephor-agent-unit-{}", std::process::id())
}

/// Removes the cgroups of pods that are left when a test ends. Tests run in parallel: cgroups in use stay.
fn remove_cgroups() {
    fn remove(directory: &Path) {
        let children = std::fs::read_dir(directory).into_iter().flatten().flatten();
        children.map(|child| child.path()).filter(|path| path.is_dir()).for_each(|path| remove(&path));
        let _ = std::fs::remove_dir(directory);
    }
    let mount = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(mount).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([mount.to_owned()]) {
        remove(&hierarchy.join(cgroup_root().trim_start_matches('/')));
    }
}

/// A certificate resolver without certificates: the HTTPS server is not part of these tests.
#[derive(Debug)]
struct NoCertificate;

impl rustls::server::ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
}

/// Builds a pod `web` with one container `main`; the fields of `spec` are added to its specification.
pub fn pod(spec: Value) -> Value {
    named_pod("web", spec)
}

pub fn named_pod(name: &str, spec: Value) -> Value {
    let mut full = json!({
        "nodeName": "node1", "restartPolicy": "Always", "terminationGracePeriodSeconds": 5,
        "containers": [{"name": "main", "image": "test/image:1", "imagePullPolicy": "IfNotPresent"}]});
    for (key, value) in spec.as_object().into_iter().flatten() {
        full[key] = value.clone();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "1",
                     "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": full,
        "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}
    })
}

pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Returns reason and message of the waiting state of a pod's first container.
pub fn waiting(pod: &Value) -> (String, String) {
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    let text = |key: &str| waiting[key].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}
