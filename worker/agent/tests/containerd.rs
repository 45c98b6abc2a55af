//! The agent against the real containerd: a pod runs, is adopted unchanged by a restarted agent, and ends
//! without leaving anything behind. Needs root, containerd, runc and busybox-static (Debian packages); if one
//! is missing, the test says so and passes.

#[allow(dead_code, reason = "shared with the tests against a fake runtime")]
#[path = "containerd/fake_api.rs"]
mod fake_api;
#[path = "containerd/runtime.rs"]
mod runtime;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fake_api::FakeApi;
use runtime::Containerd;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use worker_agent::AgentConfig;

const DEADLINE: Duration = Duration::from_secs(60);

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "uid": "11111111-aaaa", "resourceVersion": "1",
                     "labels": {"app": "web"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "nodeName": "node1", "hostNetwork": true, "restartPolicy": "Always", "terminationGracePeriodSeconds": 5,
            "volumes": [{"name": "scratch", "emptyDir": {}},
                        {"name": "info", "downwardAPI": {"items": [
                            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}],
            "initContainers": [{
                "name": "prepare", "image": runtime::IMAGE, "imagePullPolicy": "Never",
                "command": ["/bin/busybox", "sh", "-c", "cat /info/labels > /scratch/labels"],
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}, {"name": "info", "mountPath": "/info"}]}],
            "containers": [{
                "name": "main", "image": runtime::IMAGE, "imagePullPolicy": "Never",
                "env": [{"name": "WHO", "value": "world"}],
                "command": ["/bin/busybox", "sh", "-c",
                            "trap 'exit 0' TERM; echo hello $(WHO); while true; do /bin/busybox sleep 0.1; done"],
                "readinessProbe": {"exec": {"command": ["/bin/busybox", "grep", "app", "/scratch/labels"]}, "periodSeconds": 1},
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}]
        },
        "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}
    })
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn config(root: &Path, socket: &Path) -> AgentConfig {
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoCertificate));
    let (_, serving) = watch::channel(Arc::new(tls));
    let mut config = AgentConfig::new("node1", [127, 0, 0, 1].into(), socket, root.join("agent"), serving);
    config.listen = ([127, 0, 0, 1], 0).into();
    config.cgroup_root = cgroup_root();
    config
}

fn cgroup_root() -> String {
    format!("/ephor-agent-test-{}", std::process::id())
}

/// Removes the agent's cgroups when dropped: the agent itself keeps them for its next start.
struct Cgroups;

impl Drop for Cgroups {
    fn drop(&mut self) {
        fn remove(directory: &Path) {
            let children = std::fs::read_dir(directory).into_iter().flatten().flatten();
            children.map(|child| child.path()).filter(|path| path.is_dir()).for_each(|path| remove(&path));
            if let Err(error) = std::fs::remove_dir(directory) {
                eprintln!("{} is left: {error}", directory.display());
            }
        }
        let mount = Path::new("/sys/fs/cgroup");
        let hierarchies = std::fs::read_dir(mount).into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain([mount.to_owned()]) {
            let root = hierarchy.join(cgroup_root().trim_start_matches('/'));
            if root.is_dir() {
                remove(&root);
            }
        }
    }
}

/// A certificate resolver without certificates: the HTTPS server is not part of this test.
#[derive(Debug)]
struct NoCertificate;

impl rustls::server::ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_survives_a_restart_of_the_agent_and_leaves_nothing() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    // Fails if another test of the process has already set it, which is fine.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    let dir = tempfile::tempdir().expect("a directory");
    // Declared before containerd, so that it is dropped after it.
    let _cgroups = Cgroups;
    let containerd = match Containerd::start(dir.path()) {
        Ok(containerd) => containerd,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let api = FakeApi::default();
    api.put_pod(pod());

    let first = CancellationToken::new();
    let agent =
        tokio::spawn(worker_agent::run(config(dir.path(), containerd.socket()), api.client(), first.clone()));
    let running = api.wait_for_pod("web", DEADLINE, |pod| pod.is_some_and(is_ready)).await.expect("the pod");
    let id = running["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(running["status"]["phase"], "Running");
    assert_eq!(running["status"]["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    let log = dir.path().join("agent/logs/pods/default_web_11111111-aaaa/main/0.log");
    assert!(std::fs::read_to_string(log).expect("a log").contains("stdout F hello world"));

    first.cancel();
    agent.await.expect("no panic").expect("no error");
    let second = CancellationToken::new();
    let agent = tokio::spawn(worker_agent::run(
        config(dir.path(), containerd.socket()),
        api.client(),
        second.clone(),
    ));
    api.wait_for_request("PATCH /api/v1/nodes/node1", DEADLINE).await;
    api.touch_pod("web");
    let adopted = api.wait_for_pod("web", DEADLINE, |pod| pod.is_some_and(is_ready)).await.expect("the pod");
    assert_eq!(adopted["status"]["containerStatuses"][0]["containerID"], id, "the same container");
    assert_eq!(adopted["status"]["containerStatuses"][0]["restartCount"], 0);

    api.delete_pod_gracefully("web", 5);
    api.wait_for_pod("web", DEADLINE, |pod| pod.is_none()).await;
    containerd.wait_until_empty(DEADLINE).await;
    second.cancel();
    agent.await.expect("no panic").expect("no error");
    assert!(!dir.path().join("agent/pods/11111111-aaaa").exists(), "the pod's directory is gone");
}
