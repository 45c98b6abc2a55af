//! The scheduler against an API in memory: pods are spread, wait when nothing fits, and go on when it does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use master_client::Informers;
use master_client::fake::FakeApi;
use proto_env::SystemClock;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

const DEADLINE: Duration = Duration::from_secs(30);

fn start() -> (Arc<FakeApi>, DropGuard) {
    let api = FakeApi::new();
    let shutdown = CancellationToken::new();
    let informers = Informers::start(api.client(), Arc::new(|| {}), &shutdown);
    let config = master_scheduler::Config { clock: Arc::new(SystemClock::new()) };
    tokio::spawn(master_scheduler::run(api.client(), informers, config, shutdown.clone()));
    (api, shutdown.drop_guard())
}

fn add_node(api: &FakeApi, name: &str, extra: Value) {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "110"}}
    });
    if !extra.is_null() {
        node["spec"] = extra;
    }
    api.add("nodes", node);
}

fn add_pod(api: &FakeApi, name: &str, cpu: &str) {
    api.add(
        "pods",
        json!({
            "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
            "spec": {"schedulerName": "default-scheduler",
                "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}
        }),
    );
}

async fn wait(api: &FakeApi, what: &str, done: impl FnMut(&FakeApi) -> bool) {
    let waited = tokio::time::timeout(DEADLINE, api.wait_until(done)).await;
    assert!(waited.is_ok(), "never happened: {what}\n{:#?}", api.objects("pods"));
}

fn nodes_of_pods(api: &FakeApi) -> BTreeMap<String, usize> {
    let mut nodes = BTreeMap::new();
    for pod in api.objects("pods") {
        if let Some(node) = pod["spec"]["nodeName"].as_str() {
            *nodes.entry(node.to_owned()).or_insert(0) += 1;
        }
    }
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_spread_over_the_nodes_that_may_take_them() {
    let (api, _guard) = start();
    add_node(&api, "a", Value::Null);
    add_node(&api, "b", Value::Null);
    add_node(&api, "tainted", json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}));
    add_node(&api, "cordoned", json!({"unschedulable": true}));
    for number in 0..6 {
        add_pod(&api, &format!("p{number}"), "100m");
    }
    wait(&api, "all are placed", |api| nodes_of_pods(api).values().sum::<usize>() == 6).await;
    assert_eq!(nodes_of_pods(&api), BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 3)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_fits_nowhere_says_why_and_goes_on_when_a_node_comes() {
    let (api, _guard) = start();
    add_node(&api, "a", Value::Null);
    add_node(&api, "tainted", json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}));
    add_pod(&api, "first", "600m");
    wait(&api, "the first is placed", |api| nodes_of_pods(api).len() == 1).await;
    add_pod(&api, "second", "600m");
    wait(&api, "the condition", |api| {
        let condition = &api.objects("pods")[1]["status"]["conditions"][0];
        condition["reason"] == "Unschedulable"
            && condition["message"]
                == "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}. \
                    preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, \
                    1 Preemption is not helpful for scheduling."
    })
    .await;
    wait(&api, "the event", |api| {
        api.objects("events").iter().any(|event| event["reason"] == "FailedScheduling")
    })
    .await;
    add_node(&api, "b", Value::Null);
    wait(&api, "the second is placed", |api| api.objects("pods")[1]["spec"]["nodeName"] == "b").await;
    wait(&api, "its event", |api| {
        let message = "Successfully assigned default/second to b";
        api.objects("events").iter().any(|event| event["message"] == message)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_waits_goes_on_when_a_node_is_removed_or_a_namespace_is_labelled() {
    let (api, _guard) = start();
    add_node(&api, "a", Value::Null);
    add_node(&api, "gone", json!({"unschedulable": true}));
    api.add("namespaces", json!({"metadata": {"name": "default"}}));
    // Spread over both nodes: none may have more than the other, and one takes nothing.
    let spread = json!([{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]);
    for name in ["first", "second"] {
        api.add(
            "pods",
            json!({
                "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
                "spec": {"schedulerName": "default-scheduler", "topologySpreadConstraints": spread,
                    "containers": [{"name": "c"}]}
            }),
        );
    }
    wait(&api, "one is placed", |api| nodes_of_pods(api).len() == 1).await;
    wait(&api, "the other waits", |api| {
        api.objects("pods").iter().any(|pod| pod["status"]["conditions"][0]["reason"] == "Unschedulable")
    })
    .await;
    api.remove("nodes", "", "gone");
    wait(&api, "both are placed", |api| nodes_of_pods(api).get("a") == Some(&2)).await;
    // Near a pod in any namespace of a team that no namespace belongs to yet.
    let near = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
        "topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}},
        "namespaceSelector": {"matchLabels": {"team": "blue"}}}]}});
    api.add(
        "pods",
        json!({
            "metadata": {"name": "third", "namespace": "default"},
            "spec": {"schedulerName": "default-scheduler", "affinity": near, "containers": [{"name": "c"}]}
        }),
    );
    wait(&api, "the third waits", |api| {
        api.objects("pods")[2]["status"]["conditions"][0]["reason"] == "Unschedulable"
    })
    .await;
    api.change("namespaces", |namespace| {
        namespace["metadata"]["labels"] = json!({"team": "blue"});
        true
    });
    wait(&api, "the third is placed", |api| nodes_of_pods(api).get("a") == Some(&3)).await;
}
