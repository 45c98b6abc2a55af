//! One part of the node hangs (a call of the runtime, a file system, an image registry), and everything else
//! goes on.

use std::os::fd::AsRawFd as _;
use std::time::Duration;

use k8s_cri::v1::ContainerState;
use serde_json::{Value, json};
use tonic::Status;

use crate::world::{LIMIT, World, is_ready, named_pod, pod, waiting};

#[tokio::test(start_paused = true)]
async fn a_container_that_does_not_answer_keeps_no_other_from_collection_and_rotation() {
    let mut world = World::start();
    world.stop_agent().await;
    world.start_agent_with(|config| config.log_max_bytes = 10);
    world.api.put_pod(named_pod("a", json!({})));
    world.api.put_pod(named_pod("b", json!({})));
    for name in ["a", "b"] {
        world.api.wait_for_pod(name, LIMIT, |pod| pod.is_some_and(is_ready)).await;
    }
    let running = world.runtime.containers();
    let (wedged, other) = (running[0].id.clone(), running[1].id.clone());
    let (dead, removed) = (world.runtime.add_orphan("uid-wedged"), world.runtime.add_orphan("uid-gone"));
    for what in [
        format!("ContainerStatus {wedged}"),
        format!("ReopenContainerLog {wedged}"),
        format!("RemoveContainer {dead}"),
        format!("StopContainer {dead}"),
    ] {
        world.runtime.hang(&what);
    }
    let log = world.runtime.container_log(&other);
    std::fs::write(&log, "more than ten bytes\n").expect("a log");
    let rotated = |_: &crate::fake_api::FakeApi| std::fs::metadata(&log).is_ok_and(|meta| meta.len() == 0);
    world.api.wait("rotation", Duration::from_secs(60), rotated).await;
    let collected = |_: &crate::fake_api::FakeApi| world.runtime.removed().contains(&removed);
    world.api.wait("collection", Duration::from_secs(180), collected).await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_whose_container_does_not_stop_holds_no_resources() {
    let world = World::start();
    let greedy = |name: &str| {
        named_pod(
            name,
            json!({"containers": [{"name": "main", "image": "test/image:1", "imagePullPolicy": "IfNotPresent",
                                   "resources": {"requests": {"cpu": "5"}}}]}),
        )
    };
    world.api.put_pod(greedy("first"));
    world.api.wait_for_pod("first", LIMIT, |pod| pod.is_some_and(is_ready)).await;
    let stuck = world.runtime.containers()[0].id.clone();
    world.runtime.hang(&format!("StopContainer {stuck}"));
    world.api.delete_pod_by_force("first");
    world.api.put_pod(greedy("second"));
    world.api.wait_for_pod("second", LIMIT, |pod| pod.is_some_and(is_ready)).await;
    assert_eq!(world.runtime.containers().len(), 2);
}

/// A mounted file system whose server never answers.
struct HungMount {
    path: std::path::PathBuf,
    server: Option<std::fs::File>,
}

impl HungMount {
    fn new(path: std::path::PathBuf) -> Option<Self> {
        let server = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").ok()?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("hung"), &path, Some("fuse"), flags, Some(options.as_str())).ok()?;
        Some(Self { path, server: Some(server) })
    }
}

impl Drop for HungMount {
    fn drop(&mut self) {
        // Once its server is gone, every call on the file system fails at once.
        self.server.take();
        let _ = nix::mount::umount2(&self.path, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Runs in real time, because tokio's paused clock stands still while a blocking thread works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_on_a_file_system_that_hangs_can_be_deleted_and_others_run() {
    let world = World::start();
    let limit = Duration::from_secs(30);
    let path = world.dir.path().join("hung");
    std::fs::create_dir(&path).expect("a directory");
    let names = ["hung-a", "hung-b", "hung-c"];
    for name in names {
        let path = path.to_string_lossy().into_owned();
        world.api.put_pod(named_pod(
            name,
            json!({
                "containers": [{"name": "main", "image": "test/image:1", "imagePullPolicy": "IfNotPresent",
                                "volumeMounts": [{"name": "data", "mountPath": "/data", "subPath": "x"}]}],
                "volumes": [{"name": "data", "hostPath": {"path": path, "type": "Directory"}}]}),
        ));
    }
    for name in names {
        world.api.wait_for_pod(name, limit, |pod| pod.is_some_and(is_ready)).await;
    }
    let Some(hung) = HungMount::new(path) else {
        eprintln!("skipped: no FUSE here");
        return;
    };
    for container in world.runtime.containers() {
        world.runtime.kill(&container.id, 1);
    }
    world.api.put_pod(pod(json!({})));
    world.api.wait_for_pod("web", limit, |pod| pod.is_some_and(is_ready)).await;
    for name in names {
        world.api.delete_pod_gracefully(name, 1);
    }
    let ended =
        |_: &crate::fake_api::FakeApi| world.runtime.sandboxes().iter().filter(|s| s.ready()).count() == 1;
    world.api.wait("their sandboxes stopped", limit, ended).await;
    drop(hung);
    for name in names {
        world.api.wait_for_pod(name, limit, |pod| pod.is_none()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn pulls_that_hang_or_fail_keep_no_other_image_from_being_pulled() {
    let world = World::start();
    let with_image = |name: &str, image: &str| {
        named_pod(
            name,
            json!({"containers": [{"name": "main", "image": image, "imagePullPolicy": "IfNotPresent"}]}),
        )
    };
    for n in 0..12 {
        world.runtime.hang(&format!("PullImage hung/image{n}:1"));
        world.api.put_pod(with_image(&format!("hung{n}"), &format!("hung/image{n}:1")));
    }
    let asked =
        |_: &crate::fake_api::FakeApi| world.runtime.pulls().iter().any(|image| image.starts_with("hung/"));
    world.api.wait("pulls", LIMIT, asked).await;
    world.api.put_pod(with_image("broken", "broken/image:1"));
    world.api.put_pod(with_image("web", "good/image:1"));
    world.api.wait_for_pod("web", Duration::from_secs(60), |pod| pod.is_some_and(is_ready)).await;

    // Each image has its own back-off, which the container's state shows.
    let state = |reason: &str, message: &str| {
        let (reason, message) = (reason.to_owned(), message.to_owned());
        move |pod: Option<&Value>| pod.is_some_and(|pod| waiting(pod) == (reason.clone(), message.clone()))
    };
    let failed = state("ErrImagePull", "failed to pull \"broken/image:1\": no such host");
    let backed_off = state(
        "ImagePullBackOff",
        "Back-off pulling image \"broken/image:1\": ErrImagePull: failed to pull \"broken/image:1\": no such host",
    );
    world.api.wait_for_pod("broken", LIMIT, &backed_off).await;
    world.api.wait_for_pod("broken", LIMIT, &failed).await;
    let before = world.runtime.pulls().iter().filter(|image| *image == "broken/image:1").count();
    tokio::time::sleep(Duration::from_secs(1000)).await;
    let after = world.runtime.pulls().iter().filter(|image| *image == "broken/image:1").count();
    assert!(after - before <= 6, "{} pulls in a thousand seconds", after - before);
}

#[tokio::test(start_paused = true)]
async fn errors_of_the_runtime_are_the_reason_a_container_waits() {
    let world = World::start();
    let container = |image: &str, extra: Value| {
        let mut container = json!({"name": "main", "image": image, "imagePullPolicy": "IfNotPresent"});
        for (key, value) in extra.as_object().into_iter().flatten() {
            container[key] = value.clone();
        }
        json!({"containers": [container]})
    };
    let cases = [
        (
            "name",
            container("Not An Image", json!({})),
            "InvalidImageName",
            "Failed to apply default image tag \"Not An Image\": couldn't parse image name \"Not An Image\": invalid reference format",
        ),
        (
            "never",
            container("absent/image:1", json!({"imagePullPolicy": "Never"})),
            "ErrImageNeverPull",
            "Container image \"absent/image:1\" is not present with pull policy of Never",
        ),
        (
            "config",
            container(
                "test/image:1",
                json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k"}}}]}),
            ),
            "CreateContainerConfigError",
            "configmap \"no\" not found",
        ),
        (
            "root",
            container("test/image:1", json!({"securityContext": {"runAsNonRoot": true}})),
            "CreateContainerConfigError",
            "container has runAsNonRoot and image has non-numeric user (daemon), cannot verify user is non-root (pod: \"root_default(uid-root)\", container: main)",
        ),
    ];
    for (name, spec, reason, message) in cases {
        world.api.put_pod(named_pod(name, spec));
        let told = |pod: Option<&Value>| {
            pod.is_some_and(|pod| waiting(pod) == (reason.to_owned(), message.to_owned()))
        };
        world.api.wait_for_pod(name, LIMIT, told).await;
    }
    for (method, reason) in
        [("CreateContainer", "CreateContainerError"), ("StartContainer", "RunContainerError")]
    {
        let name = method.to_lowercase();
        world.runtime.fail(method, Some(Status::unknown("the reason")));
        world.api.put_pod(named_pod(&name, json!({})));
        let told = |pod: Option<&Value>| {
            pod.is_some_and(|pod| waiting(pod) == (reason.to_owned(), "the reason".to_owned()))
        };
        world.api.wait_for_pod(&name, LIMIT, told).await;
        world.runtime.fail(method, None);
        world.api.wait_for_pod(&name, LIMIT, |pod| pod.is_some_and(is_ready)).await;
    }
    let events = world.api.notes();
    assert!(events.contains(&("Failed".to_owned(), "Error: the reason".to_owned())), "{events:?}");

    world.runtime.fail("RunPodSandbox", Some(Status::unknown("no network")));
    world.api.put_pod(pod(json!({})));
    let said = |api: &crate::fake_api::FakeApi| {
        let wanted = "Failed to create pod sandbox: rpc error: code = Unknown desc = no network";
        api.notes().iter().any(|(reason, message)| reason == "FailedCreatePodSandBox" && message == wanted)
    };
    world.api.wait("an event", LIMIT, said).await;
    let running = |list: &[crate::fake_runtime::Container]| {
        list.iter().any(|c| c.state == ContainerState::ContainerRunning)
    };
    world.runtime.wait(LIMIT, running).await;
}
