//! Running containers survive a restart of the agent and changes of the node's clock.

use std::time::Duration;

use k8s_cri::v1::ContainerState;
use serde_json::{Value, json};

use crate::world::{LIMIT, World, is_ready, named_pod, pod};

fn probed() -> Value {
    let probe =
        |command: &str| json!({"exec": {"command": [command]}, "periodSeconds": 10, "failureThreshold": 3});
    pod(json!({"containers": [{
        "name": "main", "image": "test/image:1", "imagePullPolicy": "IfNotPresent",
        "startupProbe": probe("started"), "readinessProbe": probe("ready")}]}))
}

/// Returns whether the API server's pod is not Ready.
fn told_unready(world: &World) -> bool {
    !is_ready(&world.api.pod("web"))
}

#[tokio::test(start_paused = true)]
async fn a_restart_makes_no_pod_unready_and_runs_no_startup_probe_again() {
    let mut world = World::start();
    world.api.put_pod(probed());
    world.api.wait_for_pod("web", LIMIT, |pod| pod.is_some_and(is_ready)).await;
    let before = world.runtime.container("main").expect("a container");

    // From now on every probe command fails: only results from before the restart can make the container
    // healthy.
    world.runtime.commands_exit(1);
    world.restart_agent().await;
    let probed = |list: &[crate::fake_runtime::Container]| list.iter().any(|c| c.probed > before.probed);
    world.runtime.wait(LIMIT, probed).await;
    // One failure is fewer than the threshold of three.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!told_unready(&world), "{:#}", world.api.pod("web"));
    let status = &world.api.pod("web")["status"]["containerStatuses"][0];
    assert_eq!((&status["started"], &status["ready"]), (&json!(true), &json!(true)));
    // Only readiness fails: a repeated startup probe would kill the container.
    world.api.wait_for_pod("web", LIMIT, |pod| pod.is_some_and(|pod| !is_ready(pod))).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let now = world.runtime.container("main").expect("a container");
    assert_eq!((now.id, now.state), (before.id, ContainerState::ContainerRunning));
}

#[tokio::test(start_paused = true)]
async fn a_container_that_was_restarted_meanwhile_is_not_taken_for_ready() {
    let mut world = World::start();
    world.api.put_pod(probed());
    world.api.wait_for_pod("web", LIMIT, |pod| pod.is_some_and(is_ready)).await;
    world.stop_agent().await;
    world.runtime.kill(&world.runtime.container("main").expect("a container").id, 1);
    world.runtime.commands_exit(1);
    world.restart_agent().await;
    world.api.wait_for_pod("web", LIMIT, |pod| pod.is_some_and(|pod| !is_ready(pod))).await;
    world.runtime.wait(LIMIT, |list| list.iter().any(|c| c.state == ContainerState::ContainerRunning)).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert!(told_unready(&world), "its startup probe has not succeeded");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_starts_no_second_container() {
    let world = World::start();
    world.api.put_pod(named_pod(
        "web",
        json!({"initContainers": [{"name": "init", "image": "test/image:1", "imagePullPolicy": "IfNotPresent"}]}),
    ));
    world.runtime.wait(LIMIT, |list| list.iter().any(|c| c.name() == "init")).await;
    // An hour before the sandbox was created.
    world.runtime.set_clock(1_700_000_000_000_000_000 - 3_600_000_000_000);
    world.runtime.kill(&world.runtime.container("init").expect("it").id, 0);
    world.api.wait_for_pod("web", LIMIT, |pod| pod.is_some_and(is_ready)).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    let names: Vec<String> = world.runtime.containers().iter().map(|c| c.name()).collect();
    assert_eq!(names, ["init", "main"]);

    world.runtime.kill(&world.runtime.container("main").expect("it").id, 1);
    let restarted = |pod: Option<&Value>| {
        pod.is_some_and(|pod| is_ready(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1)
    };
    world.api.wait_for_pod("web", LIMIT, restarted).await;
    assert_eq!(
        world.runtime.containers().iter().filter(|c| c.state == ContainerState::ContainerRunning).count(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn a_start_whose_answer_was_lost_leaves_one_container() {
    let world = World::start();
    world.runtime.hang("StartContainer");
    world.api.put_pod(pod(json!({})));
    world.runtime.wait(LIMIT, |list| !list.is_empty()).await;
    let first = world.runtime.container("main").expect("a container").id;
    // The agent gives up after two minutes and starts again.
    world.runtime.wait(LIMIT, |list| list.iter().any(|c| c.id != first)).await;
    assert!(world.runtime.removed().contains(&first), "the first one may still start");
}
