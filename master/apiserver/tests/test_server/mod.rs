//! An API server over a one-member cluster, for the tests in this folder: requests go through the in-process
//! client, and so through the whole filter chain.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::sync::Arc;
use std::time::Duration;

use consensus::Consensus;
use http::{Method, Request};
use http_body_util::BodyExt;
use kube::client::Body;
use master_apiserver::{
    ApiServer, ClusterSettings, Config, ServerLimits, ServiceAccountKeys, TlsIdentity, UserInfo,
};
use proto_env::{CancellationToken, Env, TlsNetwork};
use serde_json::{Value, json};

/// Longest time a test waits for an expected event.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The CA of a test cluster.
pub struct Authority {
    pub issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a CA").pem();
        Self { issuer: rcgen::Issuer::from_ca_cert_pem(&pem, key).expect("an issuer"), pem }
    }

    pub fn issue(&self, user: &str, group: &str) -> TlsIdentity {
        self.issue_for(user, group, time::Duration::days(365))
    }

    /// Issues a certificate that is valid from an hour ago until `life` from now.
    pub fn issue_for(&self, user: &str, group: &str, life: time::Duration) -> TlsIdentity {
        let now = time::OffsetDateTime::now_utc();
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("params");
        params.not_before = now - time::Duration::hours(1);
        params.not_after = now + life;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, user);
        params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        TlsIdentity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            ca_pem: self.pem.clone(),
        }
    }
}

/// Connects over TLS, with a client certificate where there is one.
pub async fn tls(
    address: std::net::SocketAddr,
    ca: &str,
    identity: Option<&TlsIdentity>,
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("a CA")).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let certificate = CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes());
            let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).expect("a key");
            let chain = vec![certificate.expect("a certificate")];
            builder.with_client_auth_cert(chain, key).expect("client authentication")
        }
    };
    let tcp = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let name = ServerName::try_from("localhost").expect("a name");
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("a handshake")
}

/// Keys of ServiceAccount tokens in a cluster that has existed for a minute; they live for a year.
pub fn service_account_keys(env: &Env) -> ServiceAccountKeys {
    let now = env.clock.now();
    ServiceAccountKeys {
        first_key_pem: rcgen::KeyPair::generate().expect("a key").serialize_pem(),
        first_key_since: now - Duration::from_secs(60),
        first_key_tokens_until: now,
        secret: [7; 32].into(),
        lifetime: Duration::from_secs(365 * 24 * 3600),
    }
}

fn build(
    consensus: &Arc<Consensus>,
    authority: &Authority,
    limits: ServerLimits,
    service_account_keys: ServiceAccountKeys,
    env: &Env,
) -> ApiServer {
    let config = Config {
        consensus: Arc::clone(consensus),
        settings: ClusterSettings::default(),
        serving: authority.issue("kube-apiserver", "masters"),
        node_client: authority
            .issue("kube-apiserver-kubelet-client", proto_env::KUBELET_CLIENTS_ORGANIZATION),
        service_account_keys,
        token_authenticators: Vec::new(),
        advertise_address: "127.0.0.1:6443".to_owned(),
        limits,
    };
    ApiServer::new(config, env).expect("an API server")
}

/// Returns the code that a server answers a GET with a token with, over TLS.
pub async fn code_with_token(server: &ApiServer, world: &World, token: &str, path: &str) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    let server = server.clone();
    let serving = tokio::spawn(async move { server.serve(proto_env::ApiListener::Tcp(listener)).await });
    let mut stream = tls(address, &world.authority.pem, None).await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.expect("an answer");
    serving.abort();
    String::from_utf8_lossy(&head[9..]).parse().expect("a code")
}

/// A running server and its parts.
pub struct World {
    pub server: ApiServer,
    pub consensus: Arc<Consensus>,
    pub authority: Authority,
    pub env: Env,
    keys: ServiceAccountKeys,
    _data: tempfile::TempDir,
}

/// An answer whose body was read completely.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub text: String,
    pub body: Value,
}

impl World {
    /// Starts a server with the namespaces `default` and `kube-system` and default accounts.
    pub async fn start() -> Self {
        Self::start_with(ServerLimits::default()).await
    }

    pub async fn start_with(limits: ServerLimits) -> Self {
        Self::start_in(Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new()), limits)
            .await
    }

    /// Starts a server as `start_with` does, with the test's own clock or randomness.
    pub async fn start_in(env: Env, limits: ServerLimits) -> Self {
        let keys = service_account_keys(&env);
        Self::start_with_keys(env, limits, keys).await
    }

    /// Starts a server as `start_in` does, with the test's own keys of ServiceAccount tokens.
    pub async fn start_with_keys(env: Env, limits: ServerLimits, keys: ServiceAccountKeys) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let consensus = consensus::testing::lone_master(data.path(), &env).await.expect("a lone master");
        let authority = Authority::new();
        let server = build(&consensus, &authority, limits, keys.clone(), &env);
        let world = Self { server, consensus, authority, env, keys, _data: data };
        for namespace in ["default", "kube-system"] {
            world.post("/api/v1/namespaces", json!({"metadata": {"name": namespace}})).await.expect(201);
            let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
            world.post(&path, json!({"metadata": {"name": "default"}})).await.expect(201);
        }
        world
    }

    /// Builds a second server over the same store, as that of a master whose replica is equal.
    pub fn another_server(&self) -> ApiServer {
        self.another_server_with(self.keys.lifetime)
    }

    /// Builds a second server whose keys of ServiceAccount tokens live for `lifetime`.
    pub fn another_server_with(&self, lifetime: Duration) -> ApiServer {
        let keys = ServiceAccountKeys { lifetime, ..self.keys.clone() };
        build(&self.consensus, &self.authority, ServerLimits::default(), keys, &self.env)
    }

    /// Serves clients on a port of its own until the end of the test.
    pub async fn listen(&self) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let server = self.server.clone();
        tokio::spawn(async move { server.serve(proto_env::ApiListener::Tcp(listener)).await });
        address
    }

    pub fn client(&self, user: UserInfo) -> kube::Client {
        self.server.local_client(user, None)
    }

    pub fn admin(&self) -> kube::Client {
        self.client(UserInfo::admin("admin"))
    }

    pub async fn ask_as(
        &self,
        user: UserInfo,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body)).expect("a request");
        let response = self.client(user).send(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { code: parts.status.as_u16(), headers: parts.headers, text, body }
    }

    pub async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        self.ask_as(UserInfo::admin("admin"), method, path, headers, body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[], Vec::new()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask(Method::POST, path, &[("content-type", "application/json")], body.to_string().into()).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.ask(Method::PUT, path, &[("content-type", "application/json")], body.to_string().into()).await
    }

    pub async fn merge(&self, path: &str, body: Value) -> Answer {
        let kind = [("content-type", "application/merge-patch+json")];
        self.ask(Method::PATCH, path, &kind, body.to_string().into()).await
    }

    pub async fn delete(&self, path: &str, options: Value) -> Answer {
        let body = if options.is_null() { Vec::new() } else { options.to_string().into() };
        self.ask(Method::DELETE, path, &[("content-type", "application/json")], body).await
    }

    /// Opens a watch.
    pub async fn watch(&self, path: &str) -> Lines {
        self.watch_accepting(path, "application/json").await
    }

    pub async fn watch_accepting(&self, path: &str, accept: &str) -> Lines {
        let request = Request::get(path).header("accept", accept).body(Body::empty()).expect("a request");
        let response = self.admin().send(request).await.expect("an answer");
        assert_eq!(response.status().as_u16(), 200, "{path}");
        Lines { body: response.into_body(), buffer: Vec::new() }
    }
}

/// Reads the events of a watch one by one.
pub struct Lines {
    body: Body,
    buffer: Vec<u8>,
}

impl Lines {
    /// Returns the next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("a line is JSON"));
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("an event in time")?;
            if let Ok(data) = frame.expect("a frame").into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// Returns the next event as `(type, name)`; skips bookmarks.
    pub async fn event(&mut self) -> (String, String) {
        loop {
            let event = self.next().await.expect("an event");
            if event["type"] != "BOOKMARK" {
                let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                return (text(&event["type"]), text(&event["object"]["metadata"]["name"]));
            }
        }
    }
}

impl Answer {
    /// Panics unless the code is the expected one.
    #[track_caller]
    pub fn expect(self, code: u16) -> Self {
        assert_eq!(self.code, code, "{}", self.text);
        self
    }

    /// Returns the `message` of a Status.
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    pub fn version(&self) -> &str {
        self.body["metadata"]["resourceVersion"].as_str().unwrap_or_default()
    }
}

/// Returns a ConfigMap.
pub fn config_map(name: &str, data: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": data}})
}

/// Returns a Pod with one container.
pub fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c", "image": "example.com/app:v1"}]},
    })
}

/// The path of config maps in `default`.
pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// The path of pods in `default`.
pub const PODS: &str = "/api/v1/namespaces/default/pods";
