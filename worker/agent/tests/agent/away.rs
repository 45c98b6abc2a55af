//! Masters that are unreachable for longer than any token's lifetime, and objects that are deleted while pods
//! use them.

use std::time::Duration;

use k8s_cri::v1::ContainerState;
use serde_json::json;

use crate::world::{LIMIT, World, is_ready, pod};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn probed_pod() -> serde_json::Value {
    pod(json!({
        "serviceAccountName": "robot",
        "containers": [{
            "name": "main", "image": "test/image:1", "imagePullPolicy": "IfNotPresent",
            "livenessProbe": {"exec": {"command": ["live"]}, "periodSeconds": 5},
            "volumeMounts": [{"name": "token", "mountPath": "/token"}, {"name": "config", "mountPath": "/config"}]}],
        "volumes": [
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 300}}]}},
            {"name": "config", "configMap": {"name": "settings"}}]}))
}

async fn running_world() -> World {
    let world = World::start();
    world.api.set_token_seconds(300);
    world.api.put_object(CONFIG_MAPS, "settings", Some(json!({"data": {"key": "one"}})));
    world.api.put_pod(probed_pod());
    world.api.wait_for_pod("web", LIMIT, |pod| pod.is_some_and(is_ready)).await;
    world
}

#[tokio::test(start_paused = true)]
async fn what_runs_is_restarted_and_probed_while_masters_are_away_for_longer_than_tokens_live() {
    let world = running_world().await;
    let first = world.runtime.container("main").expect("a container");
    let token = world.dir.path().join("agent/pods/uid-web/volumes/kubernetes.io~projected/token/token");
    let before = std::fs::read_to_string(&token).expect("a token");

    world.api.set_away(true);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let now = world.runtime.container("main").expect("a container");
    assert_eq!((now.id.as_str(), now.state), (first.id.as_str(), ContainerState::ContainerRunning));
    assert!(now.probed - first.probed > 100, "probed {} times in ten minutes", now.probed - first.probed);
    assert_eq!(std::fs::read_to_string(&token).expect("the token"), before, "the node's own is kept");

    for restart in 1_u64..=3 {
        let killed = world.runtime.container("main").expect("a container");
        world.runtime.kill(&killed.id, 1);
        let began = tokio::time::Instant::now();
        let again = |list: &[crate::fake_runtime::Container]| {
            list.iter().any(|c| c.state == ContainerState::ContainerRunning && c.id != killed.id)
        };
        world.runtime.wait(LIMIT, again).await;
        // Restarts come at once, after 10 s, after 20 s; the agent checks each second.
        let back_off = Duration::from_secs(if restart == 1 { 0 } else { 10 << (restart - 2) });
        let took = began.elapsed();
        assert!(took >= back_off && took < back_off + Duration::from_secs(3), "{restart}: {took:?}");
    }
    assert_eq!(
        world.runtime.containers().iter().filter(|c| c.state == ContainerState::ContainerRunning).count(),
        1
    );

    world.runtime.commands_exit(1);
    let unhealthy = world.runtime.container("main").expect("a container").id;
    world
        .runtime
        .wait(LIMIT, |list| {
            list.iter().all(|c| c.id != unhealthy || c.state == ContainerState::ContainerExited)
        })
        .await;
    world.runtime.commands_exit(0);

    world.api.set_away(false);
    let renewed =
        |_: &crate::fake_api::FakeApi| std::fs::read_to_string(&token).is_ok_and(|text| text != before);
    world.api.wait("a new token", LIMIT, renewed).await;
    let counted = |pod: Option<&serde_json::Value>| {
        pod.is_some_and(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(3))
    };
    world.api.wait_for_pod("web", LIMIT, counted).await;
}

#[tokio::test(start_paused = true)]
async fn a_config_map_deleted_under_a_running_pod_stops_no_restart() {
    let world = running_world().await;
    world.api.put_object(CONFIG_MAPS, "settings", None);
    let said = |api: &crate::fake_api::FakeApi| {
        api.notes().iter().any(|(reason, message)| {
            reason == "FailedMount"
                && message
                    == "MountVolume.SetUp failed for volume \"config\" : configmap \"settings\" not found"
        })
    };
    world.api.wait("an event", LIMIT, said).await;
    let killed = world.runtime.container("main").expect("a container").id;
    world.runtime.kill(&killed, 1);
    world
        .runtime
        .wait(LIMIT, |list| {
            list.iter().any(|c| c.id != killed && c.state == ContainerState::ContainerRunning)
        })
        .await;
    let mount = world.runtime.container("main").expect("a container").config.mounts;
    let config = mount.iter().find(|m| m.container_path == "/config").expect("the volume");
    assert_eq!(std::fs::read_to_string(format!("{}/key", config.host_path)).expect("its content"), "one");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_restarts_uses_what_the_node_has_of_a_deleted_config_map() {
    let mut world = running_world().await;
    world.stop_agent().await;
    world.api.put_object(CONFIG_MAPS, "settings", None);
    let killed = world.runtime.container("main").expect("a container").id;
    world.runtime.kill(&killed, 1);
    world.restart_agent().await;
    world
        .runtime
        .wait(LIMIT, |list| {
            list.iter().any(|c| c.id != killed && c.state == ContainerState::ContainerRunning)
        })
        .await;
}
