//! The controllers against an API in memory, with a made-up agent that runs whatever pods there are:
//! Deployments roll out, owners take their dependents along, Services find their pods, lost nodes lose
//! theirs.

use std::sync::Arc;
use std::time::Duration;

use master_client::Informers;
use master_client::fake::FakeApi;
use master_controllers::Config;
use proto_env::SystemClock;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

const DEADLINE: Duration = Duration::from_secs(30);

struct Cluster {
    api: Arc<FakeApi>,
    informers: Informers,
    _shutdown: DropGuard,
}

impl Cluster {
    fn start() -> Self {
        let api = FakeApi::new();
        let shutdown = CancellationToken::new();
        for name in ["n1", "n2"] {
            api.add(
                "nodes",
                json!({"metadata": {"name": name},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
            );
        }
        let informers = Informers::start(api.client(), Arc::new(|| {}), &shutdown);
        tokio::spawn(agent(api.clone()));
        Self { api, informers, _shutdown: shutdown.drop_guard() }
    }

    /// Starts a leadership that ends when the guard is dropped.
    fn lead(&self) -> DropGuard {
        let term = CancellationToken::new();
        let masters = tokio::sync::watch::channel(vec!["10.0.0.1:6443".parse().unwrap()]).1;
        let config = Config {
            cluster_ca: "ca".to_owned(),
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            node_cidr_prefix: 24,
            api_service_ip: [10, 96, 0, 1].into(),
            dns_service_ip: [10, 96, 0, 10].into(),
            masters,
            clock: Arc::new(SystemClock::new()),
        };
        let run = master_controllers::run(self.api.client(), self.informers.clone(), config, term.clone());
        tokio::spawn(run);
        term.drop_guard()
    }

    async fn wait(&self, what: &str, done: impl FnMut(&FakeApi) -> bool) {
        let waited = tokio::time::timeout(DEADLINE, self.api.wait_until(done)).await;
        assert!(
            waited.is_ok(),
            "never happened: {what}\ndeployments: {:#?}\nreplicasets: {:#?}",
            self.api.objects("deployments"),
            self.api.objects("replicasets")
        );
    }
}

/// Simulates the nodes' agents: puts every new pod on a node and makes it ready.
async fn agent(api: Arc<FakeApi>) {
    let waiting = |pod: &Value| pod["status"]["phase"].is_null();
    let mut number = 0;
    loop {
        api.wait_until(|api| api.objects("pods").iter().any(waiting)).await;
        api.change("pods", |pod| {
            if !waiting(pod) {
                return false;
            }
            number += 1;
            if pod["spec"]["nodeName"].is_null() {
                pod["spec"]["nodeName"] = json!(if number % 2 == 0 { "n1" } else { "n2" });
            }
            pod["status"] = json!({"phase": "Running", "podIP": format!("10.42.0.{number}"),
                "conditions": [{"type": "Ready", "status": "True",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
            true
        });
    }
}

fn deployment(image: &str) -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": 3, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image}]}}
        }
    })
}

fn complete(api: &FakeApi, revision: &str) -> bool {
    let deployments = api.objects("deployments");
    let [deployment] = deployments.as_slice() else { return false };
    let status = &deployment["status"];
    status["observedGeneration"] == deployment["metadata"]["generation"]
        && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|field| status[*field] == 3)
        && deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == revision
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_rolls_out_and_never_asks_for_more_pods_than_its_surge_allows() {
    let cluster = Cluster::start();
    let _term = cluster.lead();
    cluster.api.add("deployments", deployment("web:1"));
    cluster.wait("the first rollout", |api| complete(api, "1")).await;
    cluster.api.change("deployments", |deployment| {
        deployment["spec"]["template"]["spec"]["containers"][0]["image"] = json!("web:2");
        true
    });
    // Largest sum of the ReplicaSets' `spec.replicas`, as stock bounds it. There may be one more pod while an
    // old one waits for its deletion.
    let mut most = 0;
    cluster
        .wait("the second rollout", |api| {
            let sets = api.objects("replicasets");
            most = most.max(sets.iter().filter_map(|set| set["spec"]["replicas"].as_i64()).sum());
            complete(api, "2")
        })
        .await;
    assert_eq!(most, 4, "of three, and one more");
    let images: Vec<_> =
        cluster.api.objects("pods").iter().map(|pod| pod["spec"]["containers"][0]["image"].clone()).collect();
    assert_eq!(images, ["web:2", "web:2", "web:2"]);
    assert_eq!(cluster.api.objects("replicasets").len(), 2, "the old one is kept for a rollback");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_makes_nothing_twice() {
    let cluster = Cluster::start();
    let term = cluster.lead();
    cluster.api.add("deployments", deployment("web:1"));
    cluster.wait("the first pod", |api| !api.objects("pods").is_empty()).await;
    drop(term);
    let mut most = 0;
    for _ in 0..5 {
        let _term = cluster.lead();
        cluster
            .wait("the rollout", |api| {
                most = most.max(api.objects("pods").len());
                complete(api, "1")
            })
            .await;
    }
    assert_eq!(cluster.api.objects("replicasets").len(), 1);
    assert_eq!(cluster.api.objects("pods").len(), 3);
    assert!(most <= 3, "{most} pods at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_deployment_takes_its_sets_and_pods_along() {
    let cluster = Cluster::start();
    let _term = cluster.lead();
    cluster.api.add("deployments", deployment("web:1"));
    cluster.wait("the rollout", |api| complete(api, "1")).await;
    let api: kube::Api<k8s_openapi::api::apps::v1::Deployment> =
        kube::Api::namespaced(cluster.api.client(), "default");
    api.delete("web", &kube::api::DeleteParams::background()).await.unwrap();
    cluster
        .wait("everything is gone", |api| {
            api.objects("replicasets").is_empty() && api.objects("pods").is_empty()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orphaned_sets_stay_without_owner() {
    let cluster = Cluster::start();
    let _term = cluster.lead();
    cluster.api.add("deployments", deployment("web:1"));
    cluster.wait("the rollout", |api| complete(api, "1")).await;
    let api: kube::Api<k8s_openapi::api::apps::v1::Deployment> =
        kube::Api::namespaced(cluster.api.client(), "default");
    api.delete("web", &kube::api::DeleteParams::orphan()).await.unwrap();
    cluster
        .wait("the set is set free and the owner let go", |api| {
            let sets = api.objects("replicasets");
            let owners = sets[0]["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len);
            let finalizers =
                api.objects("deployments")[0]["metadata"]["finalizers"].as_array().map_or(0, Vec::len);
            owners == 0 && finalizers == 0
        })
        .await;
    assert_eq!(cluster.api.objects("pods").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_finds_its_pods_and_every_cluster_has_its_own_services() {
    let cluster = Cluster::start();
    let _term = cluster.lead();
    cluster.api.add(
        "services",
        json!({"metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.9", "ports": [{"port": 80}]}}),
    );
    cluster.api.add("deployments", deployment("web:1"));
    cluster
        .wait("three ready endpoints", |api| {
            let slices = api.objects("endpointslices");
            let endpoints = slices
                .iter()
                .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "web")
                .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
            endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true).count() == 3
        })
        .await;
    cluster
        .wait("the cluster's own objects", |api| {
            let named = |resource: &str, name: &str| {
                api.objects(resource).iter().any(|object| object["metadata"]["name"] == name)
            };
            named("services", "kubernetes")
                && named("services", "kube-dns")
                && named("namespaces", "kube-node-lease")
                && named("configmaps", "kube-root-ca.crt")
                && named("serviceaccounts", "default")
                && api.objects("nodes").iter().all(|node| !node["spec"]["podCIDR"].is_null())
        })
        .await;
    let nodes = cluster.api.objects("nodes");
    assert_ne!(nodes[0]["spec"]["podCIDR"], nodes[1]["spec"]["podCIDR"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_of_a_lost_node_are_replaced() {
    let cluster = Cluster::start();
    let _term = cluster.lead();
    cluster.api.add("deployments", deployment("web:1"));
    cluster.wait("the rollout", |api| complete(api, "1")).await;
    cluster.api.change("nodes", |node| {
        node["status"]["conditions"][0]["status"] = json!("Unknown");
        node["metadata"]["name"] == "n1"
    });
    cluster
        .wait("the node is tainted", |api| {
            let taints = api.objects("nodes")[0]["spec"]["taints"].clone();
            let effects: Vec<_> = taints.as_array().cloned().unwrap_or_default();
            effects.iter().any(|taint| taint["effect"] == "NoExecute")
                && effects.iter().any(|taint| taint["effect"] == "NoSchedule")
        })
        .await;
    // The agent here goes on placing pods on both nodes; those on the lost one have to leave it again.
    cluster
        .wait("three pods on the other node", |api| {
            let pods = api.objects("pods");
            pods.len() == 3 && pods.iter().all(|pod| pod["spec"]["nodeName"] == "n2")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_orphans_nobody_before_it_knows_all_dependents() {
    let cluster = Cluster::start();
    // Deleted with `--cascade=orphan` while the leader before was dying.
    let owner = cluster.api.add("deployments", deployment("web:1"));
    let reference = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web",
        "uid": owner["metadata"]["uid"]}]);
    cluster.api.change("deployments", |deployment| {
        deployment["spec"]["replicas"] = json!(0);
        deployment["metadata"]["finalizers"] = json!(["orphan"]);
        deployment["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        true
    });
    for name in ["a", "b"] {
        let meta = json!({"name": name, "namespace": "default", "ownerReferences": reference});
        cluster.api.add("configmaps", json!({"metadata": meta}));
    }
    // Their kind is watched by the garbage collector alone, and its first list takes its time.
    cluster.api.slow_lists("configmaps", Duration::from_millis(500));
    let _term = cluster.lead();
    let owned = |api: &FakeApi| {
        let maps = api.objects("configmaps");
        let owned = maps
            .iter()
            .filter(|map| !map["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty));
        owned.count()
    };
    let mut left_when_let_go = None;
    cluster
        .wait("the owner is let go", |api| {
            let finalizers = api.objects("deployments")[0]["metadata"]["finalizers"].clone();
            let let_go = finalizers.as_array().is_none_or(Vec::is_empty);
            if let_go {
                left_when_let_go.get_or_insert(owned(api));
            }
            let_go
        })
        .await;
    assert_eq!(left_when_let_go, Some(0), "dependents that would have gone with their owner");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_in_another_namespace_does_not_count_and_an_event_says_so() {
    let cluster = Cluster::start();
    let _term = cluster.lead();
    let owner = cluster.api.add("configmaps", json!({"metadata": {"name": "owner", "namespace": "default"}}));
    let dependent = |namespace: &str, name: &str, owner_name: &str| {
        let reference = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": owner_name,
            "uid": owner["metadata"]["uid"]}]);
        let meta = json!({"name": name, "namespace": namespace, "ownerReferences": reference});
        cluster.api.add("configmaps", json!({"metadata": meta}));
    };
    dependent("default", "mine", "owner");
    dependent("default", "misnamed", "somebody");
    dependent("other", "foreign", "owner");
    let names = |api: &FakeApi| {
        let maps = api.objects("configmaps").into_iter();
        let names = maps.filter_map(|map| map["metadata"]["name"].as_str().map(str::to_owned));
        names.filter(|name| name != "kube-root-ca.crt").collect::<Vec<_>>()
    };
    cluster.wait("foreign and misnamed are collected", |api| names(api) == ["mine", "owner"]).await;
    cluster
        .wait("the event", |api| {
            api.objects("events").iter().any(|event| {
                event["reason"] == "OwnerRefInvalidNamespace" && event["involvedObject"]["name"] == "foreign"
            })
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_names_a_set_of_another_namespace_is_not_its_replica() {
    let cluster = Cluster::start();
    let _term = cluster.lead();
    cluster.api.add("deployments", deployment("web:1"));
    cluster.wait("the rollout", |api| complete(api, "1")).await;
    let set = cluster.api.objects("replicasets").remove(0);
    let reference = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
        "name": set["metadata"]["name"], "uid": set["metadata"]["uid"]}]);
    let meta = json!({"name": "foreign", "namespace": "other", "ownerReferences": reference,
        "finalizers": ["test/kept"], "labels": set["spec"]["selector"]["matchLabels"]});
    cluster.api.add("pods", json!({"metadata": meta, "spec": {"containers": []}}));
    // With a pod less it makes a new one only if the foreign one does not count.
    let mine = cluster.api.objects("pods").into_iter().find(|pod| pod["metadata"]["namespace"] == "default");
    cluster.api.remove("pods", "default", mine.unwrap()["metadata"]["name"].as_str().unwrap());
    cluster
        .wait("three of its own again", |api| {
            let pods = api.objects("pods");
            pods.iter().filter(|pod| pod["metadata"]["namespace"] == "default").count() == 3
                && complete(api, "1")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_do_not_decode_stop_nobody() {
    let cluster = Cluster::start();
    let _term = cluster.lead();
    // A time that RFC 3339 cannot express, in objects of three kinds, in a list and in a watch.
    let bad = json!("-001-12-31T23:00:00Z");
    cluster.api.add(
        "pods",
        json!({"metadata": {"name": "bad", "namespace": "default"}, "spec": {"containers": []},
            "status": {"phase": "Running", "startTime": bad}}),
    );
    cluster.api.add(
        "nodes",
        json!({"metadata": {"name": "bad"}, "status": {"conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": bad}]}}),
    );
    let mut broken = deployment("web:1");
    broken["metadata"]["name"] = json!("bad");
    broken["status"] =
        json!({"conditions": [{"type": "Available", "status": "True", "lastUpdateTime": bad}]});
    cluster.api.add("deployments", broken);
    cluster.api.add("deployments", deployment("web:1"));
    cluster
        .wait("the other deployment's rollout", |api| {
            api.objects("deployments").iter().any(|deployment| deployment["status"]["availableReplicas"] == 3)
        })
        .await;
    // Another master gets the objects by a list.
    let shutdown = CancellationToken::new();
    let _guard = shutdown.clone().drop_guard();
    let informers = Informers::start(cluster.api.client(), Arc::new(|| {}), &shutdown);
    assert!(informers.caught_up(&cluster.api.client(), &shutdown).await);
    for informers in [&informers, &cluster.informers] {
        assert_eq!(informers.broken.len(), 3, "{:?}", informers.broken.summary());
        assert_eq!(informers.nodes.cache().len(), 2);
    }
    let mended = |object: &mut Value| {
        object["status"]["startTime"] = json!("2026-01-01T00:00:00Z");
        object["metadata"]["name"] == "bad"
    };
    let mut changes = informers.broken.changes();
    cluster.api.change("pods", mended);
    let fewer = changes.wait_for(|_| informers.broken.len() == 2);
    tokio::time::timeout(DEADLINE, fewer).await.expect("a mended object is not named any more").unwrap();
    assert!(informers.pods.cache().find("default", "bad").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_stops_neither_the_others_nor_the_informer() {
    let cluster = Cluster::start();
    let _panics = cluster.informers.pods.add_handler(|_| panic!("a handler fails"));
    let (seen, mut names) = tokio::sync::watch::channel(Vec::new());
    let _works = cluster.informers.pods.add_handler(move |delta| {
        let name = delta.object().and_then(|pod| pod.metadata.name.clone());
        seen.send_modify(|names| names.extend(name));
    });
    for name in ["a", "b"] {
        cluster.api.add(
            "pods",
            json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"containers": []}}),
        );
    }
    let both = names.wait_for(|names| names.contains(&"a".to_owned()) && names.contains(&"b".to_owned()));
    tokio::time::timeout(DEADLINE, both).await.expect("both pods are seen").unwrap();
    assert!(proto_env::counters::TASK_PANICS.get("informer-handler") >= 2);
}
