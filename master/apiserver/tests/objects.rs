//! Tests of create, read, update, patch and delete, and of the errors they return.

mod test_server;

use http::Method;
use serde_json::{Value, json};
use test_server::{MAPS, PODS, World, config_map, pod};

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_created_read_replaced_and_deleted() {
    let world = World::start().await;
    let made = world.post(MAPS, config_map("a", "1")).await.expect(201);
    assert_eq!((&made.body["kind"], &made.body["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    assert!(
        made.body["metadata"]["uid"].is_string() && made.body["metadata"]["creationTimestamp"].is_string()
    );
    let one = format!("{MAPS}/a");
    assert_eq!(world.get(&one).await.expect(200).body, made.body);
    let changed = world.put(&one, config_map("a", "2")).await.expect(200);
    assert_eq!(changed.body["data"]["a"], "2");
    assert_eq!(changed.body["metadata"]["uid"], made.body["metadata"]["uid"]);
    assert!(
        changed.version().parse::<u64>().expect("a number")
            > made.version().parse::<u64>().expect("a number")
    );
    let gone = world.delete(&one, Value::Null).await.expect(200);
    assert_eq!((&gone.body["kind"], &gone.body["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(gone.body["details"]["uid"], made.body["metadata"]["uid"]);
    let missing = world.get(&one).await.expect(404);
    assert_eq!(missing.message(), "configmaps \"a\" not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_exists_cannot_be_created_again() {
    let world = World::start().await;
    world.post(MAPS, config_map("a", "1")).await.expect(201);
    let again = world.post(MAPS, config_map("a", "1")).await.expect(409);
    assert_eq!(again.message(), "configmaps \"a\" already exists");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_version_is_a_conflict_and_none_is_not() {
    let world = World::start().await;
    let made = world.post(MAPS, config_map("a", "1")).await.expect(201);
    let one = format!("{MAPS}/a");
    world.put(&one, config_map("a", "2")).await.expect(200);
    let mut stale = made.body.clone();
    stale["data"]["a"] = json!("3");
    let refused = world.put(&one, stale).await.expect(409);
    assert_eq!(
        refused.message(),
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    assert_eq!(refused.body["reason"], "Conflict");
    world.put(&one, config_map("a", "4")).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_changes_nothing_keeps_the_version() {
    let world = World::start().await;
    let made = world.post(MAPS, config_map("a", "1")).await.expect(201);
    let same = world.put(&format!("{MAPS}/a"), config_map("a", "1")).await.expect(200);
    assert_eq!(same.version(), made.version());
    let same = world.merge(&format!("{MAPS}/a"), json!({"data": {"a": "1"}})).await.expect(200);
    assert_eq!(same.version(), made.version());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_uid_in_a_patch_is_a_conflict() {
    let world = World::start().await;
    world.post(MAPS, config_map("a", "1")).await.expect(201);
    let refused = world.merge(&format!("{MAPS}/a"), json!({"metadata": {"uid": "x"}})).await.expect(409);
    assert!(
        refused.message().contains("Precondition failed: UID in precondition: x"),
        "{}",
        refused.message()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_names_are_unique_and_keep_their_base() {
    let world = World::start().await;
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let made = world.post(MAPS, json!({"metadata": {"generateName": "x-"}})).await.expect(201);
        let name = made.body["metadata"]["name"].as_str().expect("a name").to_owned();
        assert!(name.starts_with("x-") && name.len() == 7, "{name}");
        names.insert(name);
    }
    assert_eq!(names.len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_answers_as_if_and_changes_nothing() {
    let world = World::start().await;
    let dry = format!("{MAPS}?dryRun=All");
    world.post(&dry, config_map("a", "1")).await.expect(201);
    world.get(&format!("{MAPS}/a")).await.expect(404);
    world.post(MAPS, config_map("a", "1")).await.expect(201);
    world.post(&dry, config_map("a", "1")).await.expect(409);
    let put = world.put(&format!("{MAPS}/a?dryRun=All"), config_map("a", "2")).await.expect(200);
    assert_eq!(put.body["data"]["a"], "2");
    world.delete(&format!("{MAPS}/a?dryRun=All"), Value::Null).await.expect(200);
    assert_eq!(world.get(&format!("{MAPS}/a")).await.expect(200).body["data"]["a"], "1");
    world.post(&format!("{MAPS}?dryRun=Some"), config_map("b", "1")).await.expect(422);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_get_the_statuses_kubernetes_gives() {
    let world = World::start().await;
    let send = async |kind: &str, body: Vec<u8>| {
        world.ask(Method::POST, MAPS, &[("content-type", kind)], body).await
    };
    assert_eq!(send("application/json", b"{".to_vec()).await.code, 400);
    assert_eq!(send("application/json", Vec::new()).await.code, 400);
    assert_eq!(send("application/json", vec![b'['; 20_000]).await.code, 400);
    assert_eq!(send("text/plain", b"x".to_vec()).await.code, 415);
    assert_eq!(send("application/json", vec![b' '; 3 * 1024 * 1024 + 1]).await.code, 413);
    let nameless = world.post(MAPS, json!({"data": {}})).await.expect(422);
    assert_eq!(
        nameless.message(),
        "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required"
    );
    let elsewhere = json!({"metadata": {"name": "a", "namespace": "other"}});
    world.post(MAPS, elsewhere).await.expect(400);
    world.put(&format!("{MAPS}/a"), config_map("b", "1")).await.expect(400);
    world.put(MAPS, config_map("a", "1")).await.expect(405);
    world.merge(MAPS, json!({})).await.expect(405);
    world.post(&format!("{MAPS}/a"), config_map("a", "1")).await.expect(405);
    world.get(&format!("{MAPS}/a/nonsense")).await.expect(404);
    world.get("/api/v1/nonsense").await.expect(404);
    assert_eq!(world.get("/nonsense").await.expect(404).text, "404 page not found\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_created_in_a_namespace_that_is_missing_or_going() {
    let world = World::start().await;
    let maps = "/api/v1/namespaces/gone/configmaps";
    let missing = world.post(maps, config_map("a", "1")).await.expect(404);
    assert_eq!(missing.message(), "namespaces \"gone\" not found");
    world.post("/api/v1/namespaces", json!({"metadata": {"name": "gone"}})).await.expect(201);
    world.post(maps, config_map("a", "1")).await.expect(201);
    let going = world.delete("/api/v1/namespaces/gone", Value::Null).await.expect(200);
    assert_eq!(going.body["status"]["phase"], "Terminating");
    let refused = world.post(maps, config_map("b", "1")).await.expect(403);
    assert_eq!(
        refused.message(),
        "configmaps \"b\" is forbidden: unable to create new content in namespace gone because it is being terminated"
    );
    assert_eq!(refused.body["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut empty = world.get("/api/v1/namespaces/gone").await.expect(200).body;
    empty["spec"]["finalizers"] = json!([]);
    world.put("/api/v1/namespaces/gone/finalize", empty).await.expect(200);
    world.get("/api/v1/namespaces/gone").await.expect(404);
    let immortal = world.delete("/api/v1/namespaces/default", Value::Null).await.expect(403);
    assert_eq!(immortal.message(), "namespaces \"default\" is forbidden: this namespace may not be deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_keep_an_object_until_the_last_is_removed() {
    let world = World::start().await;
    let one = format!("{MAPS}/a");
    let mut map = config_map("a", "1");
    map["metadata"]["finalizers"] = json!(["example.com/f"]);
    world.post(MAPS, map).await.expect(201);
    let waiting = world.delete(&one, Value::Null).await.expect(200);
    assert!(waiting.body["metadata"]["deletionTimestamp"].is_string());
    let more = json!({"metadata": {"finalizers": ["example.com/f", "example.com/g"]}});
    let refused = world.merge(&one, more).await.expect(422);
    assert!(refused.message().contains("no new finalizers can be added if the object is being deleted"));
    world.merge(&one, json!({"metadata": {"finalizers": null}})).await.expect(200);
    world.get(&one).await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn propagation_policies_become_finalizers() {
    let world = World::start().await;
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        world.post(MAPS, config_map("a", "1")).await.expect(201);
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy});
        let waiting = world.delete(&format!("{MAPS}/a"), options).await.expect(200);
        assert_eq!(waiting.body["metadata"]["finalizers"], json!([finalizer]));
        world.merge(&format!("{MAPS}/a"), json!({"metadata": {"finalizers": null}})).await.expect(200);
        world.get(&format!("{MAPS}/a")).await.expect(404);
    }
    world.post(MAPS, config_map("a", "1")).await.expect(201);
    world.delete(&format!("{MAPS}/a"), json!({"propagationPolicy": "Background"})).await.expect(200);
    world.get(&format!("{MAPS}/a")).await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_preconditions_must_hold() {
    let world = World::start().await;
    let made = world.post(MAPS, config_map("a", "1")).await.expect(201);
    let one = format!("{MAPS}/a");
    world.delete(&one, json!({"preconditions": {"uid": "x"}})).await.expect(409);
    world.delete(&one, json!({"preconditions": {"resourceVersion": "1"}})).await.expect(409);
    world.delete(&one, json!({"propagationPolicy": "Sometimes"})).await.expect(422);
    let right =
        json!({"preconditions": {"uid": made.body["metadata"]["uid"], "resourceVersion": made.version()}});
    world.delete(&one, right).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_its_grace_period_once_it_has_a_node() {
    let world = World::start().await;
    world.post(PODS, pod("a")).await.expect(201);
    world.delete(&format!("{PODS}/a"), Value::Null).await.expect(200);
    world.get(&format!("{PODS}/a")).await.expect(404);

    world.post(PODS, pod("b")).await.expect(201);
    let binding = json!({"metadata": {"name": "b"}, "target": {"kind": "Node", "name": "n1"}});
    world.post(&format!("{PODS}/b/binding"), binding.clone()).await.expect(201);
    let bound = world.get(&format!("{PODS}/b")).await.expect(200);
    assert_eq!(bound.body["spec"]["nodeName"], "n1");
    assert_eq!(bound.body["status"]["conditions"][0]["type"], "PodScheduled");
    let twice = world.post(&format!("{PODS}/b/binding"), binding).await.expect(409);
    assert!(twice.message().contains("already assigned to node \"n1\""), "{}", twice.message());

    let going = world.delete(&format!("{PODS}/b"), Value::Null).await.expect(200);
    assert_eq!(going.body["metadata"]["deletionGracePeriodSeconds"], 30);
    let shorter = world.delete(&format!("{PODS}/b"), json!({"gracePeriodSeconds": 5})).await.expect(200);
    assert_eq!(shorter.body["metadata"]["deletionGracePeriodSeconds"], 5);
    world.delete(&format!("{PODS}/b"), json!({"gracePeriodSeconds": 0})).await.expect(200);
    world.get(&format!("{PODS}/b")).await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_its_account_token_tolerations_and_priority() {
    let world = World::start().await;
    let made = world.post(PODS, pod("a")).await.expect(201).body;
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    assert_eq!(
        (&made["spec"]["priority"], &made["spec"]["preemptionPolicy"]),
        (&json!(0), &json!("PreemptLowerPriority"))
    );
    let volume = made["spec"]["volumes"][0]["name"].as_str().expect("a token volume");
    assert!(
        volume.starts_with("kube-api-access-") && volume.len() == "kube-api-access-".len() + 5,
        "{volume}"
    );
    let mount = &made["spec"]["containers"][0]["volumeMounts"][0];
    assert_eq!(mount["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!(made["spec"]["tolerations"][0]["tolerationSeconds"], 5);
    let mut other = pod("b");
    other["spec"]["serviceAccountName"] = json!("nobody");
    let refused = world.post(PODS, other).await.expect(403);
    assert!(
        refused.message().contains("error looking up service account default/nobody"),
        "{}",
        refused.message()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn scale_changes_replicas_and_bumps_the_generation() {
    let world = World::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": {
            "metadata": {"labels": {"app": "a"}}, "spec": pod("x")["spec"],
        }},
    });
    let made = world.post(path, deployment).await.expect(201);
    assert_eq!(
        (&made.body["spec"]["replicas"], &made.body["metadata"]["generation"]),
        (&json!(1), &json!(1))
    );
    let scale = world.get(&format!("{path}/d/scale")).await.expect(200);
    assert_eq!((&scale.body["kind"], &scale.body["spec"]["replicas"]), (&json!("Scale"), &json!(1)));
    assert_eq!(scale.body["status"]["selector"], "app=a");
    let scaled = world.merge(&format!("{path}/d/scale"), json!({"spec": {"replicas": 3}})).await.expect(200);
    assert_eq!(scaled.body["spec"]["replicas"], 3);
    let now = world.get(&format!("{path}/d")).await.expect(200);
    assert_eq!((&now.body["spec"]["replicas"], &now.body["metadata"]["generation"]), (&json!(3), &json!(2)));
    world.merge(&format!("{path}/d/scale"), json!({"spec": {"replicas": -1}})).await.expect(422);

    let both = json!({"status": {"replicas": 2}, "spec": {"replicas": 9}});
    let status = world.merge(&format!("{path}/d/status"), both).await.expect(200);
    assert_eq!(
        (&status.body["status"]["replicas"], &status.body["spec"]["replicas"]),
        (&json!(2), &json!(3))
    );
    let main = world.merge(&format!("{path}/d"), json!({"status": {"replicas": 7}})).await.expect(200);
    assert_eq!(main.body["status"]["replicas"], 2, "the main resource keeps the status");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_gets_an_address_of_its_own_and_gives_it_back() {
    let world = World::start().await;
    let path = "/api/v1/namespaces/default/services";
    let service = |name: &str, ip: Option<&str>| {
        let mut s = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
        if let Some(ip) = ip {
            s["spec"]["clusterIP"] = json!(ip);
        }
        s
    };
    let made = world.post(path, service("a", None)).await.expect(201);
    let ip = made.body["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    assert!(ip.starts_with("10.96."), "{ip}");
    world.post(path, service("b", Some(&ip))).await.expect(422);
    world.delete(&format!("{path}/a"), Value::Null).await.expect(200);
    let reused = world.post(path, service("b", Some(&ip))).await.expect(201);
    assert_eq!(reused.body["spec"]["clusterIP"], ip.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_patches_all_arrive() {
    let world = std::sync::Arc::new(World::start().await);
    world.post(MAPS, config_map("a", "1")).await.expect(201);
    let patches = (0..20).map(|i| {
        let world = std::sync::Arc::clone(&world);
        tokio::spawn(async move {
            let key = format!("k{i}");
            world.merge(&format!("{MAPS}/a"), json!({"data": {key: "x"}})).await.expect(200);
        })
    });
    for patch in patches.collect::<Vec<_>>() {
        patch.await.expect("a patch");
    }
    let map = world.get(&format!("{MAPS}/a")).await.expect(200);
    assert_eq!(map.body["data"].as_object().expect("data").len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_one_object_in_both_groups() {
    let world = World::start().await;
    let event = json!({
        "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"},
        "reason": "R", "message": "m", "type": "Normal",
    });
    world.post("/api/v1/namespaces/default/events", event).await.expect(201);
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    let new = world.get(&format!("{path}/e")).await.expect(200).body;
    assert_eq!((&new["apiVersion"], &new["note"]), (&json!("events.k8s.io/v1"), &json!("m")));
    assert_eq!(new["regarding"]["name"], "p");
    let list = world.get(&format!("{path}?fieldSelector=regarding.name%3Dp")).await.expect(200).body;
    assert_eq!(list["items"].as_array().expect("items").len(), 1);
    let list = world.get(&format!("{path}?fieldSelector=regarding.name%3Dq")).await.expect(200).body;
    assert_eq!(list["items"].as_array().expect("items").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_creates_where_the_kind_allows_it_and_a_patch_never() {
    let world = World::start().await;
    let one = "/apis/coordination.k8s.io/v1/namespaces/default/leases/l";
    world.merge(one, json!({"spec": {"holderIdentity": "h"}})).await.expect(404);
    let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "h"}});
    let mut read = lease.clone();
    read["metadata"]["resourceVersion"] = json!("7");
    world.put(one, read).await.expect(404);
    world.put(one, lease).await.expect(201);
    world.put(&format!("{MAPS}/none"), config_map("none", "1")).await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn times_that_nobody_could_read_back_are_refused_wherever_they_stand() {
    let world = World::start().await;
    let bad = "0000-01-01T00:00:00+01:00";
    let deployment = json!({
        "metadata": {"name": "d"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}, "creationTimestamp": bad},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    });
    let refused = world.post("/apis/apps/v1/namespaces/default/deployments", deployment).await.expect(400);
    assert!(refused.message().contains("year outside of range [0,9999]"), "{}", refused.message());
    world.post("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await.expect(201);
    let status =
        json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": bad}]}});
    world.merge("/api/v1/nodes/n/status", status).await.expect(422);
    let lease = json!({"metadata": {"name": "l"}, "spec": {"renewTime": "0000-01-01T00:00:00.000000+01:00"}});
    world.post("/apis/coordination.k8s.io/v1/namespaces/default/leases", lease).await.expect(400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_may_ask_for_more_seconds_than_a_clock_has() {
    let world = World::start().await;
    for seconds in [i64::MAX, i64::MAX / 2, 1 << 40] {
        world.watch(&format!("{MAPS}?watch=1&timeoutSeconds={seconds}")).await;
        let delete = json!({"gracePeriodSeconds": seconds});
        world.post(PODS, pod("p")).await.expect(201);
        let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
        world.post(&format!("{PODS}/p/binding"), binding).await.expect(201);
        world.delete(&format!("{PODS}/p"), delete).await.expect(200);
        world.delete(&format!("{PODS}/p"), json!({"gracePeriodSeconds": 0})).await.expect(200);
    }
}

/// Returns a Deployment with free-form JSON, nested `depth` levels deep, in a field of its template that is
/// stored.
fn deep_deployment(depth: usize) -> Value {
    let fields = (0..depth).fold(json!({}), |inner, _| json!({"f:a": inner}));
    json!({
        "metadata": {"name": "d"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {
                    "labels": {"a": "b"},
                    "managedFields": [{"manager": "m", "operation": "Update", "fieldsV1": fields}],
                },
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_nested_too_deep_to_be_read_back_is_refused_in_every_format() {
    let world = World::start().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    for kind in ["application/json", "application/yaml"] {
        // The fields begin six levels below the object.
        for depth in [115, 119, 200] {
            let body = deep_deployment(depth).to_string().into();
            world.ask(Method::POST, deployments, &[("content-type", kind)], body).await.expect(400);
        }
    }
    world.post(deployments, deep_deployment(100)).await.expect(201);
    let one = format!("{deployments}/d");
    for depth in [115, 119, 200] {
        let deep = deep_deployment(depth);
        let operation = json!([{
            "op": "add", "path": "/spec/template/metadata/managedFields",
            "value": deep["spec"]["template"]["metadata"]["managedFields"],
        }]);
        for (kind, body) in [
            ("application/merge-patch+json", &deep),
            ("application/strategic-merge-patch+json", &deep),
            ("application/json-patch+json", &operation),
        ] {
            let headers = [("content-type", kind)];
            let answer = world.ask(Method::PATCH, &one, &headers, body.to_string().into()).await;
            assert!(matches!(answer.code, 400 | 413 | 422), "{kind} {depth}: {}", answer.code);
        }
    }
    let table = [("accept", "application/json;as=Table;g=meta.k8s.io;v=v1")];
    for headers in [&[][..], &table[..]] {
        world.ask(Method::GET, &format!("{one}?includeObject=Object"), headers, Vec::new()).await.expect(200);
    }
}
