//! Tests the service with shims and a network simulated by the test.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::{ImageLimits, Registries};
use crate::container::{ContainerProgress, ContainerRecord};
use crate::files;
use crate::network::{NetworkError, PodRef, PortMapping};
use crate::paths::{container_file, sandbox_file};
use crate::sandbox::SandboxRecord;
use crate::shim::client::ShimClient;
use crate::shim::plan::{ResolvedUser, StartedRecord};
use crate::shim::protocol::{Reply, ShimRequest, read_message, write_message};

/// Deadline that only a hanging test exceeds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A network that records its calls.
#[derive(Default)]
struct Recorder {
    detached: Mutex<Vec<String>>,
    retained: Mutex<Vec<BTreeSet<String>>>,
}

#[async_trait]
impl SandboxNetwork for Recorder {
    async fn attach(&self, _: &PodRef, _: &Path, _: &[PortMapping]) -> Result<Vec<IpAddr>, NetworkError> {
        Err(NetworkError("nobody attaches here".into()))
    }

    async fn detach(&self, pod: &PodRef, _: &Path) -> Result<(), NetworkError> {
        self.detached.lock().expect("lock").push(pod.sandbox_id.clone());
        Ok(())
    }

    async fn retain(&self, live: &BTreeSet<String>) -> Result<usize, NetworkError> {
        self.retained.lock().expect("lock").push(live.clone());
        Ok(0)
    }
}

struct World {
    service: Service,
    network: Arc<Recorder>,
    _directory: tempfile::TempDir,
}

async fn world() -> World {
    let directory = tempfile::tempdir().expect("temporary directory");
    let join = |name: &str| directory.path().join(name);
    let paths = Paths { root: join("root"), state: join("state") };
    for made in [paths.sandboxes_root(), paths.containers_root(), paths.sandboxes_state()] {
        files::make_private_directory(&made).expect("make a directory");
    }
    let config = RuntimeConfig::new(join("root"), join("state"), join("sock"), "/test".into(), join("exe"));
    let images = ImageStore::open(&paths.images(), ImageLimits::default(), Registries::default());
    let streams = crate::streaming::start(config.streaming, CancellationToken::new()).await;
    let hierarchies = Hierarchies::V2(join("cgroups"));
    let network = Arc::new(Recorder::default());
    let service = Service::new(
        config,
        paths,
        images.expect("open images"),
        network.clone(),
        hierarchies,
        streams.expect("listen"),
    );
    World { service, network, _directory: directory }
}

fn sandbox_record(id: &str, ready: bool) -> SandboxRecord {
    SandboxRecord {
        id: id.into(),
        config: v1::PodSandboxConfig::default(),
        runtime_handler: String::new(),
        created_at: 1,
        ready,
        attached: true,
        addresses: vec!["10.0.0.7".into()],
        cgroup: Path::new("/test").join(id),
        own_cgroup: false,
    }
}

fn container(service: &Service, sandbox: &str, id: &str) -> Arc<Container> {
    let record = ContainerRecord {
        id: id.into(),
        sandbox_id: sandbox.into(),
        config: v1::ContainerConfig::default(),
        image_id: String::new(),
        image_ref: String::new(),
        layers: Vec::new(),
        created_at: 1,
        log_path: None,
        stop_signal: 15,
        cgroup: Path::new("/test").join(sandbox).join(id),
    };
    for directory in [service.paths.container_root(id), service.paths.container_state(id)] {
        files::make_private_directory(&directory).expect("make a directory");
    }
    let shim = ShimClient::new(service.paths.sandbox_state(sandbox));
    let container = Arc::new(Container::new(record, ContainerProgress::default(), shim));
    service.tables().containers.insert(id.into(), container.clone());
    container
}

fn started() -> StartedRecord {
    StartedRecord { pid: 1, started_at: 2, user: ResolvedUser::default() }
}

/// After a reboot no process of the pod runs, and its host ports must be available to the next sandbox.
#[tokio::test]
async fn a_sandbox_without_a_shim_gives_its_network_back() {
    let World { service, network, _directory } = world().await;
    let root = service.paths.sandbox_root("dead");
    files::make_private_directory(&root).expect("make a directory");
    files::replace_json(&root.join(sandbox_file::RECORD), &sandbox_record("dead", true)).expect("write");
    let running = service.paths.container_root("c");
    files::make_private_directory(&running).expect("make a directory");
    let record = container(&service, "dead", "c").record.clone();
    files::replace_json(&running.join(container_file::RECORD), &record).expect("write");
    files::replace_json(&running.join(container_file::STARTED), &started()).expect("write");

    service.restore().await.expect("restore");
    assert_eq!(*network.detached.lock().expect("lock"), ["dead"]);
    let status = service.sandbox_status("dead").expect("it is known");
    assert_eq!(status.state(), v1::PodSandboxState::SandboxNotready);
    assert_eq!(status.network.map(|n| n.ip), Some(String::new()));
    let exit = service.container("c").expect("it is known").progress.borrow().exit.clone();
    assert_eq!(exit.map(|e| e.exit_code), Some(255));
    let record: SandboxRecord =
        files::read_json(&root.join(sandbox_file::RECORD)).expect("read").expect("a record");
    assert!(!record.attached && !record.ready);
}

#[tokio::test]
async fn addresses_that_no_sandbox_holds_are_given_back_and_others_are_not() {
    let World { service, network, _directory } = world().await;
    for (id, ready) in [("live", true), ("dead", false)] {
        files::make_private_directory(&service.paths.sandbox_root(id)).expect("make a directory");
        let sandbox =
            Sandbox::new(sandbox_record(id, ready), ShimClient::new(service.paths.sandbox_state(id)));
        service.tables().sandboxes.insert(id.into(), Arc::new(sandbox));
    }
    service.tidy_networks_once().await;
    assert_eq!(*network.detached.lock().expect("lock"), ["dead"]);
    assert_eq!(*network.retained.lock().expect("lock"), [BTreeSet::from(["live".to_owned()])]);
}

fn state(service: &Service, id: &str) -> v1::ContainerState {
    service.container_status(&service.container(id).expect("it is known")).state()
}

/// Answers the first start request too late, and the second one at once.
async fn slow_shim(listener: UnixListener, mut told: tokio::sync::oneshot::Receiver<()>) {
    let mut kept = Vec::new();
    loop {
        let (mut client, _) = listener.accept().await.expect("accept");
        let request: ShimRequest = read_message(&mut client).await.expect("a request");
        assert!(matches!(request, ShimRequest::Start { .. }), "{request:?}");
        if told.try_recv().is_ok() {
            write_message(&mut client, &Reply::Started(started())).await.expect("answer");
            return;
        }
        kept.push(client);
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_not_answered_in_time_starts_no_second_container() {
    let World { service, _directory, .. } = world().await;
    let state_directory = service.paths.sandbox_state("s");
    files::make_private_directory(&state_directory).expect("make a directory");
    let listener = UnixListener::bind(state_directory.join(sandbox_file::SHIM_SOCKET)).expect("listen");
    let (tell, told) = tokio::sync::oneshot::channel();
    let shim = tokio::spawn(slow_shim(listener, told));
    let container = container(&service, "s", "c");

    let error = service.start_container("c").await.expect_err("there was no answer");
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
    // The state must not be "created", which invites a second start, nor "exited".
    assert_eq!(state(&service, "c"), v1::ContainerState::ContainerUnknown);
    let error = service.start_container("c").await.expect_err("it may run");
    assert!(error.message().contains("CONTAINER_UNKNOWN"), "{error}");
    assert!(service.was_starting(&container), "a restart would forget it");

    tell.send(()).expect("the shim lives");
    tokio::time::timeout(PATIENCE * 10, container.settled()).await.expect("the shim has answered");
    assert_eq!(state(&service, "c"), v1::ContainerState::ContainerRunning);
    shim.await.expect("the shim");
}

/// A shim that dies while it starts a container may have started its process: nobody but the runtime can end
/// it, and while it lives the pod cannot be removed.
#[tokio::test]
async fn what_a_shim_started_right_before_its_death_is_killed() {
    let World { service, network: _, _directory } = world().await;
    let sandbox = Sandbox::new(sandbox_record("s", true), ShimClient::new(service.paths.sandbox_state("s")));
    let sandbox = Arc::new(sandbox);
    files::make_private_directory(&service.paths.sandbox_root("s")).expect("make a directory");
    service.tables().sandboxes.insert("s".into(), sandbox.clone());
    let container = container(&service, "s", "c");
    let mut left = std::process::Command::new("sleep").arg("600").spawn().expect("a process");
    let cgroup = service.hierarchies.cgroup(&container.record.cgroup);
    let directory = cgroup.directory("").expect("the cgroup");
    std::fs::create_dir_all(&directory).expect("make the cgroup");
    std::fs::write(directory.join("cgroup.procs"), left.id().to_string()).expect("enter the cgroup");

    let error = service.start_container("c").await.expect_err("there is no shim");
    assert!(error.message().contains("failed to start"), "{error}");
    // In this directory, which is no real cgroup, the kernel does not remove what has ended.
    let ended = tokio::task::spawn_blocking(move || {
        let status = left.wait().expect("wait");
        std::fs::write(directory.join("cgroup.procs"), "").expect("leave the cgroup");
        status
    });
    tokio::time::timeout(PATIENCE, service.shim_gone(&sandbox)).await.expect("it ends");
    let status = tokio::time::timeout(PATIENCE, ended).await.expect("it is killed").expect("waited");
    assert!(!status.success());
    let exit = container.progress.borrow().exit.clone().expect("an end");
    assert_eq!((exit.exit_code, exit.reason.as_str()), (128, "StartError"), "the first record stays");
}

#[tokio::test]
async fn one_record_that_cannot_be_read_does_not_keep_the_node_down() {
    let World { service, network: _, _directory } = world().await;
    for id in ["broken", "whole"] {
        let record = container(&service, "s", id).record.clone();
        let root = service.paths.container_root(id);
        files::replace_json(&root.join(container_file::RECORD), &record).expect("write");
        files::replace_json(&root.join(container_file::STARTED), &started()).expect("write");
    }
    let file = service.paths.container_root("broken").join(container_file::STARTED);
    std::fs::write(file, "{\"pid\":").expect("write");
    service.tables().containers.clear();
    service.restore().await.expect("the others are restored");
    assert_eq!(state(&service, "whole"), v1::ContainerState::ContainerRunning);
    assert_eq!(state(&service, "broken"), v1::ContainerState::ContainerCreated);
}
