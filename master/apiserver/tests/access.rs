//! Access tests: the authorizer's matrix, tokens, certificates, and paths open to everybody.

mod test_server;

use std::sync::Arc;

use http::Method;
use master_apiserver::UserInfo;
use proto_env::ApiListener;
use serde_json::{Value, json};
use test_server::{PODS, World, pod};

fn node(name: &str) -> UserInfo {
    UserInfo::authenticated(format!("system:node:{name}"), &["system:nodes"])
}

async fn code(world: &World, user: &UserInfo, method: Method, path: &str) -> u16 {
    world.ask_as(user.clone(), method, path, &[("content-type", "application/json")], Vec::new()).await.code
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_told_what_it_cannot_do_in_stock_words() {
    let world = World::start().await;
    let alice = UserInfo::authenticated("alice", &[]);
    let refused = world.ask_as(alice.clone(), Method::GET, PODS, &[], Vec::new()).await.expect(403);
    assert_eq!(
        refused.message(),
        "pods is forbidden: User \"alice\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let cluster =
        world.ask_as(alice.clone(), Method::GET, "/api/v1/nodes/n", &[], Vec::new()).await.expect(403);
    assert_eq!(
        cluster.message(),
        "nodes \"n\" is forbidden: User \"alice\" cannot get resource \"nodes\" in API group \"\" at the cluster scope"
    );
    assert_eq!(code(&world, &alice, Method::GET, "/apis").await, 200);
    assert_eq!(code(&world, &alice, Method::GET, "/metrics").await, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_only_health_and_version_are_open() {
    let world = World::start().await;
    let nobody = UserInfo::anonymous();
    for open in ["/healthz", "/livez", "/livez/ping", "/readyz?verbose", "/version"] {
        assert_eq!(code(&world, &nobody, Method::GET, open).await, 200, "{open}");
    }
    for closed in ["/api", "/apis", "/metrics", PODS, "/", "/versions", "/healthzz"] {
        assert_eq!(code(&world, &nobody, Method::GET, closed).await, 401, "{closed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_reaches_itself_its_pods_and_what_they_refer_to() {
    let world = World::start().await;
    let secrets = "/api/v1/namespaces/default/secrets";
    for name in ["used", "unused"] {
        world.post(secrets, json!({"metadata": {"name": name}})).await.expect(201);
    }
    let mut mine = pod("mine");
    mine["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "used"}}]);
    world.post(PODS, mine).await.expect(201);
    world.post(PODS, pod("other")).await.expect(201);
    let bind = async |name: &str, to: &str| {
        let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": to}});
        world.post(&format!("{PODS}/{name}/binding"), binding).await.expect(201);
    };
    bind("mine", "n1").await;
    bind("other", "n2").await;
    let n1 = node("n1");
    let allowed = [
        (Method::GET, format!("{PODS}/mine")),
        (Method::GET, format!("{secrets}/used")),
        (Method::GET, format!("{secrets}?fieldSelector=metadata.name%3Dused")),
        (Method::GET, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1".to_owned()),
        (Method::GET, "/api/v1/services".to_owned()),
        (Method::GET, "/api/v1/nodes".to_owned()),
        (Method::GET, "/apis/discovery.k8s.io/v1/endpointslices".to_owned()),
        (Method::GET, "/api/v1/namespaces/default/configmaps/kube-root-ca.crt".to_owned()),
    ];
    for (method, path) in allowed {
        assert_ne!(code(&world, &n1, method.clone(), &path).await, 403, "{method} {path}");
    }
    let denied = [
        (Method::GET, format!("{PODS}/other")),
        (Method::GET, format!("{secrets}/unused")),
        (Method::GET, secrets.to_owned()),
        (Method::GET, format!("{secrets}?fieldSelector=metadata.name%3Dunused")),
        (Method::GET, "/api/v1/pods".to_owned()),
        (Method::GET, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn2".to_owned()),
        (Method::GET, "/api/v1/secrets".to_owned()),
        (Method::DELETE, format!("{PODS}/other")),
        (Method::POST, format!("{PODS}/mine/exec?command=sh")),
        (Method::PATCH, "/api/v1/nodes/n2/status".to_owned()),
        (Method::DELETE, "/api/v1/nodes/n2".to_owned()),
        (Method::POST, secrets.to_owned()),
        (Method::GET, "/apis/apps/v1/deployments".to_owned()),
        (Method::GET, "/apis/coordination.k8s.io/v1/namespaces/default/leases/n1".to_owned()),
    ];
    for (method, path) in denied {
        assert_eq!(code(&world, &n1, method.clone(), &path).await, 403, "{method} {path}");
    }
    let create = |name: &str| json!({"metadata": {"name": name}}).to_string().into_bytes();
    let kind = [("content-type", "application/json")];
    world.ask_as(n1.clone(), Method::POST, "/api/v1/nodes", &kind, create("n2")).await.expect(403);
    world.ask_as(n1, Method::POST, "/api/v1/nodes", &kind, create("n1")).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheduler_binds_pods_but_writes_nothing_else() {
    let world = World::start().await;
    world.post(PODS, pod("a")).await.expect(201);
    let scheduler = UserInfo::authenticated("system:kube-scheduler", &[]);
    assert_eq!(code(&world, &scheduler, Method::GET, "/api/v1/pods").await, 200);
    assert_eq!(code(&world, &scheduler, Method::POST, PODS).await, 403);
    assert_eq!(code(&world, &scheduler, Method::GET, "/api/v1/secrets").await, 403);
    let binding = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n"}}).to_string();
    let path = format!("{PODS}/a/binding");
    let kind = [("content-type", "application/json")];
    world.ask_as(scheduler, Method::POST, &path, &kind, binding.into()).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_may_ask_about_themselves() {
    let world = World::start().await;
    let alice = UserInfo::authenticated("alice", &["devs"]);
    let kind = [("content-type", "application/json")];
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let who = world.ask_as(alice.clone(), Method::POST, path, &kind, b"{}".to_vec()).await.expect(201).body;
    assert_eq!(who["status"]["userInfo"]["username"], "alice");
    assert_eq!(who["status"]["userInfo"]["groups"], json!(["devs", "system:authenticated"]));
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let may = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}}).to_string();
    let no = world.ask_as(alice, Method::POST, path, &kind, may.clone().into()).await.expect(201).body;
    assert_eq!(no["status"]["allowed"], false);
    let yes = world.ask(Method::POST, path, &kind, may.into()).await.expect(201).body;
    assert_eq!(yes["status"]["allowed"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listener_knows_certificates_and_tokens_and_refuses_wrong_ones() {
    let world = World::start().await;
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = tcp.local_addr().expect("an address");
    let server = world.server.clone();
    let serving = tokio::spawn(async move { server.serve(ApiListener::Tcp(tcp)).await });

    let account = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let issued = world.post(account, json!({"spec": {"expirationSeconds": 600}})).await.expect(201).body;
    let token = issued["status"]["token"].as_str().expect("a token").to_owned();
    let admin = world.authority.issue("root", "system:masters");
    let stranger = test_server::Authority::new().issue("root", "system:masters");

    let ask = async |identity: Option<&master_apiserver::TlsIdentity>, token: Option<&str>, path: &str| {
        tls_get(address, &world.authority.pem, identity, token, path).await
    };
    assert_eq!(ask(Some(&admin), None, PODS).await.0, 200);
    assert_eq!(ask(Some(&stranger), None, PODS).await.0, 401, "a certificate of another CA");
    assert_eq!(ask(None, None, PODS).await.0, 401);
    assert_eq!(ask(None, None, "/readyz").await.0, 200);
    assert_eq!(ask(None, Some("nonsense"), PODS).await.0, 401);
    let (code, body) = ask(None, Some(&token), PODS).await;
    assert_eq!(code, 403);
    assert!(body["message"].as_str().expect("a message").contains("system:serviceaccount:default:default"));
    world.delete("/api/v1/namespaces/default/serviceaccounts/default", Value::Null).await.expect(200);
    assert_eq!(ask(None, Some(&token), PODS).await.0, 401, "a token outlives its account not");

    world.env.shutdown.cancel();
    tokio::time::timeout(test_server::PATIENCE, serving)
        .await
        .expect("in time")
        .expect("no panic")
        .expect("no error");
}

/// Sends a GET over TLS and HTTP/1.1.
async fn tls_get(
    address: std::net::SocketAddr,
    ca: &str,
    identity: Option<&master_apiserver::TlsIdentity>,
    token: Option<&str>,
    path: &str,
) -> (u16, Value) {
    get(&mut tls_connection(address, ca, identity).await, token, path).await
}

/// Client side of an HTTP/1.1 connection.
type Sender = hyper::client::conn::http1::SendRequest<http_body_util::Empty<bytes::Bytes>>;

/// Sends a GET on an existing connection.
async fn get(sender: &mut Sender, token: Option<&str>, path: &str) -> (u16, Value) {
    use http_body_util::BodyExt;
    let mut request = http::Request::get(path).header("host", "localhost");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(http_body_util::Empty::new()).expect("a request");
    sender.ready().await.expect("the connection is open");
    let response = sender.send_request(request).await.expect("an answer");
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// Opens an HTTP/1.1 connection over TLS.
async fn tls_connection(
    address: std::net::SocketAddr,
    ca: &str,
    identity: Option<&master_apiserver::TlsIdentity>,
) -> Sender {
    let tls = test_server::tls(address, ca, identity).await;
    let (sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(tls)).await.expect("HTTP");
    tokio::spawn(connection);
    sender
}

/// The machine's clock plus a number of seconds that the test sets.
struct Ahead {
    machine: proto_env::SystemClock,
    by: Arc<std::sync::atomic::AtomicU64>,
}

impl proto_env::Clock for Ahead {
    fn now(&self) -> std::time::SystemTime {
        let by = self.by.load(std::sync::atomic::Ordering::Relaxed);
        self.machine.now() + std::time::Duration::from_secs(by)
    }

    fn monotonic(&self) -> std::time::Duration {
        self.machine.monotonic()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_does_not_outlive_its_certificate() {
    let by = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let clock = Ahead { machine: proto_env::SystemClock::new(), by: Arc::clone(&by) };
    let network = Arc::new(proto_env::TlsNetwork::joining());
    let mut env = proto_env::Env::production(network, proto_env::CancellationToken::new());
    env.clock = Arc::new(clock);
    let world = World::start_in(env, master_apiserver::ServerLimits::default()).await;
    let address = world.listen().await;
    let admin = world.authority.issue_for("root", "system:masters", time::Duration::hours(1));
    let mut connection = tls_connection(address, &world.authority.pem, Some(&admin)).await;
    assert_eq!(get(&mut connection, None, PODS).await.0, 200);
    by.store(2 * 3600, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(get(&mut connection, None, PODS).await.0, 401, "on the connection that was open");
    let account = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let issued = world.post(account, json!({"spec": {"expirationSeconds": 600}})).await.expect(201).body;
    let token = issued["status"]["token"].as_str();
    assert_eq!(get(&mut connection, token, PODS).await.0, 403, "a token on it is still known");
    world.env.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_servers_own_identity_towards_nodes_counts_for_nothing_here() {
    let world = World::start().await;
    let groups = [proto_env::KUBELET_CLIENTS_ORGANIZATION];
    let kubelet_client = UserInfo::authenticated("kube-apiserver-kubelet-client", &groups);
    for (method, path) in [
        (Method::GET, PODS),
        (Method::GET, "/api/v1/secrets"),
        (Method::POST, PODS),
        (Method::DELETE, "/api/v1/nodes/n1"),
        (Method::POST, "/api/v1/namespaces/default/pods/p/exec?command=sh"),
        (Method::GET, "/metrics"),
    ] {
        assert_eq!(code(&world, &kubelet_client, method.clone(), path).await, 403, "{method} {path}");
    }
    // The API knows what an API server may do at nodes, since nodes check their clients' requests through
    // reviews.
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let kind = [("content-type", "application/json")];
    for (verb, subresource, allowed) in
        [("create", "proxy", true), ("get", "log", true), ("get", "stats", true), ("update", "status", false)]
    {
        let review = json!({"spec": {"resourceAttributes": {
            "verb": verb, "resource": "nodes", "subresource": subresource, "name": "n1",
        }}});
        let body = review.to_string().into_bytes();
        let answer = world.ask_as(kubelet_client.clone(), Method::POST, path, &kind, body).await;
        assert_eq!(answer.expect(201).body["status"]["allowed"], allowed, "{verb} {subresource}");
    }
}
