//! A node that is not healthy reports so, with the reason.

use std::time::Duration;

use crate::fake_api::FakeApi;
use crate::world::{LIMIT, World};

/// Returns status and message of the node's Ready condition.
fn ready(api: &FakeApi) -> (String, String) {
    let node = api.node();
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().find(|c| c["type"] == "Ready").cloned().unwrap_or_default();
    let text = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("message"))
}

async fn wait(world: &World, status: &str, message: &str) {
    let wanted = (status.to_owned(), message.to_owned());
    world.api.wait(message, LIMIT, |api| ready(api) == wanted).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_is_not_ready_while_its_runtime_or_network_is_not() {
    let mut world = World::start();
    world.stop_agent().await;
    let health = tokio::sync::watch::Sender::default();
    let told = health.subscribe();
    world.start_agent_with(|config| config.health = health);
    wait(&world, "True", "kubelet is posting ready status").await;

    world.runtime.set_condition("NetworkReady", false);
    let network =
        "container runtime network not ready: NetworkReady=false reason:Broken message:it is broken";
    wait(&world, "False", network).await;
    assert_eq!((told.borrow().ready, told.borrow().reason.as_str()), (false, network), "what beats say");

    world.runtime.set_condition("RuntimeReady", false);
    let both = format!(
        "[container runtime is down, container runtime not ready: RuntimeReady=false reason:Broken message:it is broken, {network}]"
    );
    wait(&world, "False", &both).await;

    world.runtime.set_condition("RuntimeReady", true);
    world.runtime.set_condition("NetworkReady", true);
    wait(&world, "True", "kubelet is posting ready status").await;
    assert!(told.borrow().ready);

    world.runtime.hang("Status");
    let began = tokio::time::Instant::now();
    wait(&world, "False", "container runtime is down").await;
    assert!(began.elapsed() < Duration::from_secs(70), "{:?}", began.elapsed());
}
