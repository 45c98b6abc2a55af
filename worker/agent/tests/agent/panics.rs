//! Parts of the agent panic: no container stops, and what the part does goes on.

use std::time::Duration;

use k8s_cri::v1::ContainerState;
use proto_env::counters::TASK_PANICS;
use serde_json::{Value, json};

use crate::world::{LIMIT, World, is_ready, named_pod};

const TOKEN: &str = "POST /api/v1/namespaces/default/serviceaccounts/default/token";
const STATUS: &str = "PATCH /api/v1/namespaces/default/pods/web/status";
const EVENT: &str = "POST /api/v1/namespaces/default/events";
const WATCH: &str = "GET /api/v1/namespaces/default/configmaps";

fn with_volumes(name: &str) -> Value {
    named_pod(
        name,
        json!({
            "containers": [{
                "name": "main", "image": "test/image:1", "imagePullPolicy": "IfNotPresent",
                "volumeMounts": [{"name": "token", "mountPath": "/token"}, {"name": "config", "mountPath": "/config"}]}],
            "volumes": [
                {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
                {"name": "config", "configMap": {"name": "settings", "optional": true}}]}),
    )
}

/// Returns whether the pod is ready with exactly this many restarts of its container.
fn restarted(count: u64) -> impl Fn(Option<&Value>) -> bool {
    move |pod| {
        pod.is_some_and(|p| is_ready(p) && p["status"]["containerStatuses"][0]["restartCount"] == count)
    }
}

#[tokio::test(start_paused = true)]
async fn pods_go_on_while_parts_of_the_agent_panic() {
    let world = World::start();
    world.api.put_pod(named_pod("other", json!({})));
    world.api.wait_for_pod("other", LIMIT, restarted(0)).await;
    let other = world.runtime.container("main").expect("a container").id;

    // The pod's own worker, twice, and the watch of its ConfigMap.
    let before = |task: &str| TASK_PANICS.get(task);
    let (workers, statuses) = (before("agent-pod-worker"), before("agent-status"));
    world.api.panic_at(TOKEN, 2);
    world.api.panic_at(WATCH, 1);
    world.api.put_pod(with_volumes("web"));
    world.api.wait_for_pod("web", LIMIT, restarted(0)).await;
    assert!(before("agent-pod-worker") >= workers + 2, "nothing panicked");
    assert_eq!((world.api.panics_left(TOKEN), world.api.panics_left(WATCH)), (0, 0));

    // Everything that tells the API server of a restart.
    world.api.panic_at(STATUS, 3);
    world.api.panic_at(EVENT, 3);
    let running = |id: &str| {
        let id = id.to_owned();
        move |list: &[crate::fake_runtime::Container]| {
            list.iter()
                .any(|c| c.id != id && c.is_of("uid-web") && c.state == ContainerState::ContainerRunning)
        }
    };
    let web = world.runtime.containers().into_iter().find(|c| c.is_of("uid-web")).expect("a container").id;
    world.runtime.kill(&web, 1);
    world.runtime.wait(LIMIT, running(&web)).await;
    world.api.wait_for_pod("web", LIMIT, restarted(1)).await;
    assert!(before("agent-status") > statuses, "nothing panicked");

    let same = world.runtime.containers().into_iter().find(|c| c.id == other).expect("it is there");
    assert_eq!(same.state, ContainerState::ContainerRunning, "the other pod did not notice");
    // A pod is deleted although the request for it panics.
    world.api.panic_at("DELETE /api/v1/namespaces/default/pods/web", 1);
    world.api.delete_pod_gracefully("web", 1);
    world.api.wait_for_pod("web", Duration::from_secs(600), |pod| pod.is_none()).await;
}
