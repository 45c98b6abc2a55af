//! Tests of the actions decided for pods in every state of their life cycle.

use k8s_cri::v1::{ContainerMetadata, PodSandboxMetadata, PodSandboxNetworkStatus, PodSandboxState};
use serde_json::json;

use super::*;

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}))
        .unwrap()
}

fn two_step(policy: &str) -> Pod {
    pod(
        json!({"restartPolicy": policy, "initContainers": [{"name": "i1"}, {"name": "i2"}], "containers": [{"name": "c"}]}),
    )
}

fn sandbox(state: PodSandboxState) -> PodSandboxStatus {
    PodSandboxStatus {
        id: "s".to_owned(),
        state: state as i32,
        created_at: 1,
        metadata: Some(PodSandboxMetadata::default()),
        network: Some(PodSandboxNetworkStatus { ip: "10.0.0.1".to_owned(), ..Default::default() }),
        ..Default::default()
    }
}

fn container(name: &str, state: ContainerState, exit_code: i32) -> ContainerStatus {
    ContainerStatus {
        id: format!("{name}-id"),
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        state: state as i32,
        exit_code,
        created_at: 2,
        ..Default::default()
    }
}

fn runtime(containers: Vec<ContainerStatus>) -> RuntimePod {
    let sandbox_of = containers.iter().map(|c| (c.id.clone(), "s".to_owned())).collect();
    RuntimePod { sandboxes: vec![sandbox(PodSandboxState::SandboxReady)], containers, sandbox_of }
}

fn decide(pod: &Pod, runtime: &RuntimePod) -> Actions {
    compute(pod, runtime, &BTreeMap::new())
}

use ContainerState::{ContainerExited as Exited, ContainerRunning as Running};

#[test]
fn a_new_pod_gets_a_sandbox_and_its_first_init_container() {
    let actions = decide(&two_step("Always"), &RuntimePod::default());
    assert_eq!((actions.create_sandbox, actions.init_to_start), (Some(0), vec![0]));
    let plain = pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    assert_eq!(decide(&plain, &RuntimePod::default()).to_start, [0, 1]);
}

#[test]
fn init_containers_run_one_after_the_other_then_the_rest() {
    let pod = two_step("Always");
    let actions = decide(&pod, &runtime(vec![container("i1", Running, 0)]));
    assert_eq!(actions, Actions::default(), "nothing to do while one runs");
    let actions = decide(&pod, &runtime(vec![container("i1", Exited, 0)]));
    assert_eq!(actions.init_to_start, [1]);
    let actions = decide(&pod, &runtime(vec![container("i1", Exited, 0), container("i2", Exited, 0)]));
    assert_eq!(actions.to_start, [0]);
}

#[test]
fn a_failed_init_container_is_retried_unless_the_policy_is_never() {
    let failed = runtime(vec![container("i1", Exited, 1)]);
    assert_eq!(decide(&two_step("Always"), &failed).init_to_start, [0]);
    let actions = decide(&two_step("Never"), &failed);
    assert!(actions.kill_pod && actions.init_to_start.is_empty() && actions.to_start.is_empty());
}

#[test]
fn what_runs_is_left_alone() {
    let pod = pod(json!({"containers": [{"name": "c"}]}));
    assert_eq!(decide(&pod, &runtime(vec![container("c", Running, 0)])), Actions::default());
}

#[test]
fn an_ended_container_restarts_by_policy() {
    let ended = |code| runtime(vec![container("c", Exited, code)]);
    let with = |policy: &str| pod(json!({"restartPolicy": policy, "containers": [{"name": "c"}]}));
    assert_eq!(decide(&with("Always"), &ended(0)).to_start, [0]);
    assert_eq!(decide(&with("OnFailure"), &ended(1)).to_start, [0]);
    assert!(decide(&with("OnFailure"), &ended(0)).kill_pod);
    assert!(decide(&with("Never"), &ended(1)).kill_pod);
}

#[test]
fn a_failed_liveness_probe_kills_and_restarts() {
    let pod = pod(json!({"containers": [{"name": "c"}]}));
    let health = BTreeMap::from([(
        "c-id".to_owned(),
        ContainerHealth { liveness: Some(false), ..Default::default() },
    )]);
    let actions = compute(&pod, &runtime(vec![container("c", Running, 0)]), &health);
    assert_eq!(actions.to_kill[0].message, "Container c failed liveness probe, will be restarted");
    assert_eq!((actions.to_start, actions.kill_pod), (vec![0], false));
}

#[test]
fn a_changed_image_restarts_the_container_whatever_the_policy() {
    let pod = pod(json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "new"}]}));
    let mut running = container("c", Running, 0);
    running.annotations.insert(labels::HASH.to_owned(), labels::container_hash("c", "old"));
    let actions = decide(&pod, &runtime(vec![running]));
    assert_eq!((actions.to_start.len(), actions.to_kill.len()), (1, 1));
}

#[test]
fn a_dead_sandbox_is_replaced_with_the_next_attempt() {
    let pod = pod(json!({"containers": [{"name": "c"}]}));
    let mut runtime = runtime(vec![container("c", Exited, 137)]);
    runtime.sandboxes[0].state = PodSandboxState::SandboxNotready as i32;
    let actions = decide(&pod, &runtime);
    assert_eq!((actions.create_sandbox, actions.kill_pod, actions.to_start), (Some(1), true, vec![0]));
}

#[test]
fn a_dead_sandbox_of_a_finished_pod_is_not_replaced() {
    let pod = pod(json!({"restartPolicy": "Never", "containers": [{"name": "c"}]}));
    let mut runtime = runtime(vec![container("c", Exited, 0)]);
    runtime.sandboxes[0].state = PodSandboxState::SandboxNotready as i32;
    let actions = decide(&pod, &runtime);
    assert_eq!((actions.create_sandbox, actions.kill_pod), (None, true));
}

#[test]
fn a_sidecar_starts_before_the_rest_and_is_restarted_beside_it() {
    let pod = pod(json!({
        "initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "c"}]}));
    assert_eq!(decide(&pod, &runtime(vec![])).init_to_start, [0]);
    assert_eq!(decide(&pod, &runtime(vec![container("s", Running, 0)])).to_start, [0]);
    let actions = decide(&pod, &runtime(vec![container("s", Exited, 0), container("c", Running, 0)]));
    assert_eq!((actions.init_to_start, actions.to_start.len(), actions.kill_pod), (vec![0], 0, false));
}

#[test]
fn a_clock_that_was_set_back_starts_no_second_container() {
    let pod = pod(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}));
    let mut runtime = runtime(vec![container("c", Running, 0), container("i", Exited, 0)]);
    runtime.sandboxes[0].created_at = 1_000;
    assert_eq!(decide(&pod, &runtime), Actions::default());
}

#[test]
fn containers_of_an_older_sandbox_tell_nothing_whatever_their_time() {
    let pod = pod(json!({"containers": [{"name": "c"}]}));
    let mut runtime = runtime(vec![container("c", Exited, 0)]);
    runtime.containers[0].created_at = 1_000;
    runtime.sandbox_of.insert("c-id".to_owned(), "older".to_owned());
    assert_eq!(decide(&pod, &runtime).to_start, [0]);
}

#[test]
fn of_two_running_containers_of_one_name_the_older_ends() {
    let pod = pod(json!({"containers": [{"name": "c"}]}));
    let mut older = container("c", Running, 0);
    older.id = "older".to_owned();
    let actions = decide(&pod, &runtime(vec![container("c", Running, 0), older]));
    assert_eq!(actions.to_kill.iter().map(|kill| kill.id.as_str()).collect::<Vec<_>>(), ["older"]);
    assert!(actions.to_start.is_empty() && !actions.kill_pod);
}

#[test]
fn a_container_that_may_run_is_killed_before_its_replacement_starts() {
    let pods = [
        (json!({"containers": [{"name": "c"}]}), "Container"),
        (json!({"initContainers": [{"name": "c"}], "containers": [{"name": "main"}]}), "Init container"),
        (
            json!({"initContainers": [{"name": "c", "restartPolicy": "Always"}], "containers": [{"name": "main"}]}),
            "Init container",
        ),
    ];
    for (spec, what) in pods {
        let unknown = container("c", ContainerState::ContainerUnknown, 0);
        let actions = decide(&pod(spec), &runtime(vec![unknown]));
        let kills: Vec<_> =
            actions.to_kill.iter().map(|kill| (kill.id.as_str(), kill.message.clone())).collect();
        let message = format!("{what} is in \"unknown\" state, try killing it before restart");
        assert_eq!(kills, [("c-id", message)]);
        assert_eq!(actions.init_to_start.len() + actions.to_start.len(), 1, "{what}");
    }
}
