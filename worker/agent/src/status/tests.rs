//! Tests of the statuses of pods in every state of their life cycle.

use k8s_cri::v1::{
    ContainerMetadata, ContainerState, ContainerStatus as Cri, PodSandboxMetadata, PodSandboxNetworkStatus,
    PodSandboxStatus,
};
use serde_json::json;

use super::*;
use crate::clock;

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u", "generation": 3}, "spec": spec}))
        .unwrap()
}

fn container(name: &str, state: ContainerState, exit_code: i32, attempt: u32) -> Cri {
    Cri {
        id: format!("{name}{attempt}"),
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt }),
        state: state as i32,
        exit_code,
        created_at: 2,
        started_at: 3_000_000_000,
        finished_at: 4_000_000_000,
        ..Default::default()
    }
}

fn runtime(containers: Vec<Cri>) -> RuntimePod {
    let sandbox = PodSandboxStatus {
        id: "s".to_owned(),
        created_at: 1,
        metadata: Some(PodSandboxMetadata::default()),
        network: Some(PodSandboxNetworkStatus { ip: "10.0.0.1".to_owned(), ..Default::default() }),
        ..Default::default()
    };
    RuntimePod { sandboxes: vec![sandbox], containers, ..Default::default() }
}

struct World {
    pod: Pod,
    previous: PodStatus,
    waiting: BTreeMap<String, Waiting>,
    health: BTreeMap<String, ContainerHealth>,
    terminal: bool,
    messages: BTreeMap<String, String>,
}

impl World {
    fn new(spec: serde_json::Value) -> Self {
        Self {
            pod: pod(spec),
            previous: PodStatus::default(),
            waiting: BTreeMap::new(),
            health: BTreeMap::new(),
            terminal: false,
            messages: BTreeMap::new(),
        }
    }

    fn status(&self, runtime: &RuntimePod) -> PodStatus {
        generate(Inputs {
            pod: &self.pod,
            previous: &self.previous,
            runtime,
            waiting: &self.waiting,
            health: &self.health,
            messages: &self.messages,
            node_ips: &["192.0.2.1".to_owned()],
            runtime_name: "ephor",
            terminal: self.terminal,
            failed: None,
            now: &clock::now(),
        })
    }

    fn phase(&self, runtime: &RuntimePod) -> String {
        self.status(runtime).phase.unwrap()
    }
}

fn condition<'a>(status: &'a PodStatus, type_: &str) -> &'a PodCondition {
    status.conditions.iter().flatten().find(|c| c.type_ == type_).unwrap()
}

use ContainerState::{ContainerExited as Exited, ContainerRunning as Running};

#[test]
fn a_running_pod_is_ready_once_its_probe_says_so() {
    let mut world = World::new(json!({"containers": [{"name": "c", "readinessProbe": {}}]}));
    let runtime = runtime(vec![container("c", Running, 0, 0)]);
    let status = world.status(&runtime);
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let ready = condition(&status, "Ready");
    assert_eq!(ready.message.as_deref(), Some("containers with unready status: [c]"));
    assert_eq!((ready.status.as_str(), ready.observed_generation), ("False", Some(3)));
    world.health.insert("c0".to_owned(), ContainerHealth { readiness: Some(true), ..Default::default() });
    let status = world.status(&runtime);
    assert_eq!(condition(&status, "Ready").status, "True");
    assert_eq!(status.container_statuses.unwrap()[0].container_id.as_deref(), Some("ephor://c0"));
    assert_eq!((status.pod_ip.as_deref(), status.host_ip.as_deref()), (Some("10.0.0.1"), Some("192.0.2.1")));
}

#[test]
fn phases_follow_exit_codes_and_restart_policy() {
    let phase = |policy: &str, code: i32| {
        let world = World::new(json!({"restartPolicy": policy, "containers": [{"name": "c"}]}));
        world.phase(&runtime(vec![container("c", Exited, code, 0)]))
    };
    assert_eq!(phase("Never", 0), "Succeeded");
    assert_eq!(phase("Never", 1), "Failed");
    assert_eq!(phase("OnFailure", 1), "Running");
    assert_eq!(phase("Always", 0), "Running");
    let mut world = World::new(json!({"containers": [{"name": "c"}]}));
    world.terminal = true;
    assert_eq!(world.phase(&runtime(vec![container("c", Exited, 0, 0)])), "Succeeded");
}

#[test]
fn a_failed_init_container_keeps_an_always_pod_pending_and_fails_a_never_pod() {
    let spec = |policy: &str| json!({"restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "c"}]});
    let failed = runtime(vec![container("i", Exited, 1, 0)]);
    let status = World::new(spec("Always")).status(&failed);
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    let initialized = condition(&status, "Initialized");
    assert_eq!(initialized.message.as_deref(), Some("containers with incomplete status: [i]"));
    assert_eq!(World::new(spec("Never")).phase(&failed), "Failed");
}

#[test]
fn a_crashing_container_waits_with_its_last_state() {
    let mut world = World::new(json!({"containers": [{"name": "c"}]}));
    let waiting = Waiting { reason: "CrashLoopBackOff".to_owned(), message: "back-off".to_owned() };
    world.waiting.insert("c".to_owned(), waiting);
    let status = world.status(&runtime(vec![container("c", Exited, 1, 2)]));
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let shown = &status.container_statuses.unwrap()[0];
    assert_eq!(shown.restart_count, 2);
    let reason = shown.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref();
    assert_eq!(reason, Some("CrashLoopBackOff"));
    assert_eq!(shown.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
}

#[test]
fn a_container_the_runtime_lost_counts_as_ended_and_the_pod_stays_running() {
    let mut world = World::new(json!({"containers": [{"name": "c"}]}));
    world.previous = world.status(&runtime(vec![container("c", Running, 0, 0)]));
    let status = world.status(&runtime(vec![]));
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let shown = &status.container_statuses.unwrap()[0];
    assert_eq!(shown.restart_count, 1);
    assert_eq!(shown.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 137);
}

#[test]
fn a_terminal_phase_is_never_left() {
    let mut world = World::new(json!({"restartPolicy": "Never", "containers": [{"name": "c"}]}));
    world.previous.phase = Some("Failed".to_owned());
    world.previous.reason = Some("DeadlineExceeded".to_owned());
    let status = world.status(&runtime(vec![container("c", Running, 0, 0)]));
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
}

#[test]
fn the_runtimes_reason_for_an_end_comes_before_what_the_container_wrote() {
    let mut world = World::new(json!({"containers": [{"name": "c"}], "restartPolicy": "Never"}));
    let failed = Cri {
        reason: "StartError".to_owned(),
        message: "exec: \"/no\": no such file".to_owned(),
        started_at: 0,
        ..container("c", Exited, 128, 0)
    };
    let runtime = runtime(vec![failed]);
    for (written, expected) in
        [("", "exec: \"/no\": no such file"), ("goodbye", "exec: \"/no\": no such file: goodbye")]
    {
        world.messages = BTreeMap::from([("c0".to_owned(), written.to_owned())]);
        let status = world.status(&runtime);
        let state = status.container_statuses.unwrap().remove(0).state.unwrap().terminated.unwrap();
        assert_eq!(state.message.as_deref(), Some(expected));
        assert_eq!(serde_json::to_value(&state.started_at).unwrap(), json!("1970-01-01T00:00:00Z"));
    }
}
