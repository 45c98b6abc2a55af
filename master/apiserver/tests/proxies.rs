//! Addresses that the proxies to nodes, pods and services refuse: addresses come from statuses that nodes
//! write and from EndpointSlices that users write.

mod test_server;

use serde_json::{Value, json};
use test_server::{PODS, World, pod};

/// Addresses that belong to no pod and no node: loopback, link-local, unspecified, multicast, broadcast, and
/// the Service address of the API servers.
const REFUSED: [&str; 8] = [
    "127.0.0.1",
    "127.1.2.3",
    "169.254.169.254",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "10.96.0.1",
];

async fn refused(world: &World, path: &str, what: &str) {
    let answer = world.get(path).await.expect(400);
    assert_eq!(answer.message(), "address not allowed", "{path} to {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_and_nodes_that_claim_a_place_of_the_masters_are_not_proxied_to() {
    let world = World::start().await;
    world.post(PODS, pod("p")).await.expect(201);
    world.post("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await.expect(201);
    for ip in REFUSED {
        let status = json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}});
        world.merge(&format!("{PODS}/p/status"), status).await.expect(200);
        refused(&world, &format!("{PODS}/p:6444/proxy/x"), ip).await;
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": ip}]}});
        world.merge("/api/v1/nodes/n/status", status).await.expect(200);
        refused(&world, "/api/v1/nodes/n/proxy/x", ip).await;
        refused(&world, "/api/v1/nodes/n:8080/proxy/x", ip).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_own_server_is_not_looked_for_at_a_masters_port() {
    let world = World::start().await;
    world.post("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await.expect(201);
    world.post(PODS, pod("p")).await.expect(201);
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    world.post(&format!("{PODS}/p/binding"), binding).await.expect(201);
    // The lone master's addresses are 127.0.0.1:6443 and :6444.
    for port in [6443, 6444] {
        let status = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        }});
        world.merge("/api/v1/nodes/n/status", status).await.expect(200);
        let answer = world.get(&format!("{PODS}/p/log")).await.expect(500);
        assert!(answer.message().contains("address not allowed"), "{}", answer.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_proxied_to_pods_alone() {
    let world = World::start().await;
    let services = "/api/v1/namespaces/default/services";
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    world.post(services, service).await.expect(201);
    world.post(PODS, pod("p")).await.expect(201);
    let status = json!({"status": {"podIP": "10.42.0.7", "podIPs": [{"ip": "10.42.0.7"}]}});
    world.merge(&format!("{PODS}/p/status"), status).await.expect(200);
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let made = json!({
        "metadata": {"name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4", "ports": [{"port": 6444}], "endpoints": [{"addresses": ["10.42.0.9"]}],
    });
    world.post(slices, made).await.expect(201);
    let pod_ref = |name: &str| json!({"kind": "Pod", "namespace": "default", "name": name});
    for (address, target) in [
        ("10.42.0.9", Value::Null),
        ("10.42.0.9", pod_ref("p")),
        ("10.42.0.7", pod_ref("gone")),
        ("10.42.0.7", json!({"kind": "Pod", "namespace": "other", "name": "p"})),
    ] {
        let endpoints = json!({"endpoints": [{"addresses": [address], "targetRef": target}]});
        world.merge(&format!("{slices}/s-1"), endpoints).await.expect(200);
        let answer = world.get(&format!("{services}/s/proxy/x")).await.expect(503);
        assert!(answer.message().contains("no endpoints available for service"), "{}", answer.message());
    }
}
