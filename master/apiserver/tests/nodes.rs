//! Tests of what a node may write and see: NodeRestriction on every verb, applied to the object stored at the
//! moment of the write, and tokens only for the node's own pods.

mod test_server;

use http::Method;
use master_apiserver::UserInfo;
use serde_json::{Value, json};
use test_server::{Answer, PODS, World, pod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];
const MERGE: [(&str, &str); 1] = [("content-type", "application/merge-patch+json")];
const TOKEN: &str = "/api/v1/namespaces/default/serviceaccounts/default/token";

fn node(name: &str) -> UserInfo {
    UserInfo::authenticated(format!("system:node:{name}"), &["system:nodes"])
}

async fn send(world: &World, user: &UserInfo, method: Method, path: &str, body: Value) -> Answer {
    let headers = if method == Method::PATCH { MERGE } else { JSON };
    world.ask_as(user.clone(), method, path, &headers, body.to_string().into()).await
}

async fn bind(world: &World, name: &str, to: &str) {
    let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": to}});
    world.post(&format!("{PODS}/{name}/binding"), binding).await.expect(201);
}

/// Creates a pod, binds it to a node and returns it.
async fn bound_pod(world: &World, name: &str, to: &str) -> Value {
    world.post(PODS, pod(name)).await.expect(201);
    bind(world, name, to).await;
    world.get(&format!("{PODS}/{name}")).await.expect(200).body
}

/// Sends a request of node `n1` whose body is sent only when the server waits for it and `meanwhile` is done;
/// returns the answer's code and text.
async fn with_late_body(
    world: &World,
    address: std::net::SocketAddr,
    (method, path): (&Method, &str),
    body: Value,
    meanwhile: impl Future<Output = ()>,
) -> (u16, String) {
    let identity = world.authority.issue("system:node:n1", "system:nodes");
    let mut stream = test_server::tls(address, &world.authority.pem, Some(&identity)).await;
    let kind = if *method == Method::PATCH { MERGE[0].1 } else { JSON[0].1 };
    let body = body.to_string();
    // The server sends 100 when a handler begins to read the body, that is after authorization.
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nexpect: 100-continue\r\n\
         content-type: {kind}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let exchange = async {
        stream.write_all(head.as_bytes()).await.expect("sent");
        let mut first = [0; 25];
        stream.read_exact(&mut first).await.expect("an answer");
        assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n", "{method} {path}");
        meanwhile.await;
        stream.write_all(body.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        String::from_utf8_lossy(&answer).into_owned()
    };
    let answer = tokio::time::timeout(test_server::PATIENCE, exchange).await.expect("in time");
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code");
    (code, answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_holds_its_body_back_does_not_reach_another_nodes_pod() {
    let world = World::start().await;
    let address = world.listen().await;
    let status = json!({"status": {"phase": "Failed"}});
    let evict =
        |name: &str| json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
    let cases = [
        ("a", Method::DELETE, "", json!({"gracePeriodSeconds": 0})),
        ("b", Method::POST, "/eviction", evict("b")),
        ("c", Method::PATCH, "/status", status),
    ];
    for (name, method, subresource, body) in cases {
        let path = format!("{PODS}/{name}{subresource}");
        let meanwhile = async {
            bound_pod(&world, name, "n2").await;
        };
        let (code, answer) = with_late_body(&world, address, (&method, &path), body, meanwhile).await;
        assert_eq!(code, 403, "{method} {path}: {answer}");
        let pod = world.get(&format!("{PODS}/{name}")).await.expect(200).body;
        assert_ne!(pod["status"]["phase"], "Failed");
        assert_eq!(pod["metadata"]["deletionTimestamp"], Value::Null, "{name} is being deleted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_writes_status_of_its_own_pods_and_no_labels() {
    let world = World::start().await;
    let n1 = node("n1");
    bound_pod(&world, "mine", "n1").await;
    let path = format!("{PODS}/mine/status");
    let running = json!({"status": {"phase": "Running"}});
    send(&world, &n1, Method::PATCH, &path, running).await.expect(200);
    let relabel = json!({"metadata": {"labels": {"app": "other"}}, "status": {"phase": "Running"}});
    let refused = send(&world, &n1, Method::PATCH, &path, relabel).await.expect(403);
    assert_eq!(
        refused.message(),
        "pods \"mine\" is forbidden: node \"n1\" cannot update labels through pod status"
    );
    let claims = json!({"status": {"resourceClaimStatuses": [{"name": "c", "resourceClaimName": "x"}]}});
    send(&world, &n1, Method::PATCH, &path, claims).await.expect(403);
    let again = json!({"status": {"phase": "Succeeded"}});
    send(&world, &node("n2"), Method::PATCH, &path, again).await.expect(403);
    // A node may not write the pod itself, its other subresources, or other nodes' pods.
    for (method, sub) in
        [(Method::PATCH, ""), (Method::PATCH, "/resize"), (Method::PATCH, "/ephemeralcontainers")]
    {
        let path = format!("{PODS}/mine{sub}");
        send(&world, &n1, method, &path, json!({"metadata": {"labels": {"app": "b"}}})).await.expect(403);
    }
    send(&world, &node("n2"), Method::DELETE, &format!("{PODS}/mine"), json!({})).await.expect(403);
    send(&world, &n1, Method::DELETE, &format!("{PODS}/gone"), json!({})).await.expect(404);
    send(&world, &n1, Method::DELETE, &format!("{PODS}/mine"), json!({"gracePeriodSeconds": 0}))
        .await
        .expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_sees_its_own_pods_and_is_told_which_are_gone() {
    let world = World::start().await;
    bound_pod(&world, "mine", "n1").await;
    let n1 = node("n1");
    let code = async |user: &UserInfo, path: &str| {
        world.ask_as(user.clone(), Method::GET, path, &[], Vec::new()).await.code
    };
    assert_eq!(code(&n1, &format!("{PODS}/mine")).await, 200);
    assert_eq!(code(&node("n2"), &format!("{PODS}/mine")).await, 403);
    assert_eq!(code(&node("n2"), &format!("{PODS}/mine/status")).await, 403);
    assert_eq!(code(&n1, &format!("{PODS}/gone")).await, 404);
    // A watch of a name that does not exist yet would show any pod created with that name later.
    let by_name = format!("{PODS}?watch=1&fieldSelector=metadata.name%3Dlater");
    assert_eq!(code(&n1, &by_name).await, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_cannot_make_itself_fit_for_pods() {
    let world = World::start().await;
    let n1 = node("n1");
    let nodes = "/api/v1/nodes";
    let create = async |change: Value| {
        let mut body = json!({"metadata": {"name": "n1"}, "spec": {}});
        body.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
        send(&world, &n1, Method::POST, nodes, body).await
    };
    let labelled = json!({"metadata": {"name": "n1", "labels": {"node-restriction.kubernetes.io/pci": "1"}}});
    assert_eq!(
        create(labelled).await.expect(403).message(),
        "nodes \"n1\" is forbidden: node \"n1\" is not allowed to set the following labels: node-restriction.kubernetes.io/pci"
    );
    create(json!({"spec": {"podCIDR": "10.42.7.0/24", "podCIDRs": ["10.42.7.0/24"]}})).await.expect(403);
    let own = json!({
        "metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1", "team": "a"}},
        "spec": {"taints": [{"key": "dedicated", "effect": "NoSchedule"}]},
    });
    let created = create(own).await.expect(201).body;
    assert_eq!(created["spec"]["taints"].as_array().expect("taints").len(), 2);

    let path = format!("{nodes}/n1");
    let refused = [
        (json!({"spec": {"taints": null}}), "modify taints"),
        (json!({"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}}), "modify taints"),
        (json!({"spec": {"podCIDR": "10.42.7.0/24", "podCIDRs": ["10.42.7.0/24"]}}), "modify podCIDRs"),
        (json!({"metadata": {"labels": {"node-role.kubernetes.io/a": ""}}}), "modify labels"),
        (
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]}}),
            "modify ownerReferences",
        ),
    ];
    for sub in ["", "/status"] {
        for (patch, why) in &refused {
            let answer = send(&world, &n1, Method::PATCH, &format!("{path}{sub}"), patch.clone()).await;
            let answer = answer.expect(403);
            assert!(answer.message().contains(why), "{why}: {}", answer.message());
        }
    }
    let allowed = json!({"metadata": {"labels": {"team": "b", "topology.kubernetes.io/zone": "z"}}});
    send(&world, &n1, Method::PATCH, &path, allowed).await.expect(200);
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    send(&world, &n1, Method::PATCH, &format!("{path}/status"), ready).await.expect(200);
    // An administrator may make all these changes, and a node's writes keep them.
    world.merge(&path, json!({"spec": {"taints": null}})).await.expect(200);
    world.merge(&path, json!({"metadata": {"labels": {"node-role.kubernetes.io/a": ""}}})).await.expect(200);
    send(&world, &n1, Method::PATCH, &path, json!({"metadata": {"labels": {"team": "c"}}})).await.expect(200);
    let stolen = json!({"metadata": {"labels": {"node-role.kubernetes.io/a": null}}});
    send(&world, &n1, Method::PATCH, &path, stolen).await.expect(403);
}

/// Changes a valid object into one that the server refuses.
type Spoil<'a> = &'a dyn Fn(&mut Value);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_creates_mirror_pods_of_its_own_and_no_others() {
    let world = World::start().await;
    let n1 = node("n1");
    let own = json!({"metadata": {"name": "n1"}});
    let uid = send(&world, &n1, Method::POST, "/api/v1/nodes", own).await.expect(201).body["metadata"]["uid"]
        .clone();
    let mirror = |change: Spoil<'_>| {
        let mut pod = json!({
            "metadata": {
                "name": "static-n1", "annotations": {"kubernetes.io/config.mirror": "hash"},
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": uid, "controller": true,
                }],
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "example.com/app:v1"}]},
        });
        change(&mut pod);
        pod
    };
    let cases: [(Spoil<'_>, &str); 6] = [
        (&|p| p["metadata"]["annotations"] = json!({}), "can only create mirror pods"),
        (&|p| p["spec"]["nodeName"] = json!("n2"), "can only create pods with spec.nodeName set to itself"),
        (&|p| p["metadata"]["ownerReferences"] = json!([]), "with an owner reference set to itself"),
        (&|p| p["metadata"]["ownerReferences"][0]["uid"] = json!("other"), "UID mismatch"),
        (
            &|p| p["metadata"]["ownerReferences"][0]["controller"] = json!(false),
            "a controller owner reference",
        ),
        (
            &|p| p["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}}]),
            "can not create pods that reference secrets",
        ),
    ];
    for (change, why) in cases {
        let answer = send(&world, &n1, Method::POST, PODS, mirror(change)).await.expect(403);
        assert!(answer.message().contains(why), "{why}: {}", answer.message());
    }
    let made = send(&world, &n1, Method::POST, PODS, mirror(&|_| {})).await.expect(201).body;
    assert_eq!(made["spec"]["volumes"], Value::Null, "a mirror pod gets no token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_tokens_for_pods_bound_to_it_and_audiences_they_ask_for() {
    let world = World::start().await;
    let n1 = node("n1");
    let mut asks = pod("mine");
    asks["spec"]["volumes"] = json!([{"name": "vault", "projected": {"sources": [
        {"serviceAccountToken": {"audience": "vault", "path": "token"}},
    ]}}]);
    world.post(PODS, asks).await.expect(201);
    bind(&world, "mine", "n1").await;
    let mine = world.get(&format!("{PODS}/mine")).await.expect(200).body["metadata"]["uid"].clone();
    let other = bound_pod(&world, "other", "n2").await["metadata"]["uid"].clone();
    let to = |name: &str, uid: &Value| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid});
    let refused = [
        (json!({"expirationSeconds": 4_294_967_296_u64}), "node requested token not bound to a pod"),
        (
            json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "mine"}}),
            "node requested token with a pod binding without a uid",
        ),
        (
            json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": "mine", "uid": "u"}}),
            "node requested token not bound to a pod",
        ),
        (json!({"boundObjectRef": to("mine", &other)}), "does not match the UID in record"),
        (json!({"boundObjectRef": to("other", &other)}), "bound to a pod scheduled on a different node"),
        (
            json!({"boundObjectRef": to("mine", &mine), "audiences": ["vault", "x"]}),
            "node may only request 0 or 1 audiences",
        ),
        (
            json!({"boundObjectRef": to("mine", &mine), "audiences": ["x"]}),
            "system:node:n1 is not authorized to request tokens for audience \"x\"",
        ),
    ];
    for (spec, why) in refused {
        let answer = send(&world, &n1, Method::POST, TOKEN, json!({"spec": spec})).await.expect(403);
        assert!(answer.message().contains(why), "{why}: {}", answer.message());
    }
    for audiences in [json!([]), json!(["vault"])] {
        let spec = json!({"boundObjectRef": to("mine", &mine), "audiences": audiences});
        send(&world, &n1, Method::POST, TOKEN, json!({"spec": spec})).await.expect(201);
    }
    let short = json!({"boundObjectRef": to("mine", &mine), "expirationSeconds": 599});
    send(&world, &n1, Method::POST, TOKEN, json!({"spec": short})).await.expect(422);
}
