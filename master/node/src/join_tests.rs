//! Joining and renewing over real TLS, at the Join service of a real, lone master.

use std::collections::BTreeMap;
use std::time::SystemTime;

use base64::Engine;
use consensus::ProposeOptions;
use consensus::testing::lone_master;
use proto_env::grpc::{ChannelOptions, channel, incoming};
use proto_env::{CancellationToken, CertificateInfo, MASTERS_ORGANIZATION, Network};
use proto_env::{Purpose, TlsMaterial, TlsNetwork};
use proto_wire::cluster::join_client::JoinClient;
use proto_wire::cluster::join_server::JoinServer;
use rcgen::{CertificateParams, KeyPair};
use storage::{Mutation, Txn};
use tonic::Code;
use tonic::transport::{Channel, Server};

use super::*;
use crate::pki::Issued;

const LIFETIME: Duration = Duration::from_secs(3600);
const SECRET: &str = "0123456789abcdef";

struct Master {
    consensus: Arc<Consensus>,
    keys: Arc<ClusterKeys>,
    address: String,
    _directory: tempfile::TempDir,
}

impl Master {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let keys = Arc::new(ClusterKeys::create("c", now.into(), |bytes| bytes.fill(9)).unwrap());
        let validity = Validity::new(now, LIFETIME);
        let own = keys.authority.issue(&Subject::new("m1", MASTERS_ORGANIZATION), &[], Usage::Peer, validity);
        let network = Arc::new(TlsNetwork::new(&material(&keys, own.unwrap())).unwrap());
        let listener = network.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().to_string();
        let env = Env::production(network, CancellationToken::new());
        let consensus = lone_master(directory.path(), &env).await.unwrap();
        let service = JoinService {
            consensus: consensus.clone(),
            keys: keys.clone(),
            settings: ClusterSettings::default(),
            certificate_lifetime: LIFETIME,
            env,
        };
        let server = Server::builder().add_service(JoinServer::new(service));
        tokio::spawn(server.serve_with_incoming(incoming(listener)));
        Self { consensus, keys, address, _directory: directory }
    }

    async fn put(&self, key: &str, value: serde_json::Value) {
        let value = serde_json::to_vec(&value).unwrap().into();
        let mutations = vec![Mutation::Put { key: key.to_owned(), value }];
        let txn = Txn { preconditions: Vec::new(), mutations };
        self.consensus.propose(txn, ProposeOptions::default()).await.unwrap();
    }

    async fn put_node(&self, name: &str) {
        self.put(&format!("/registry/core/nodes/{name}"), serde_json::json!({})).await;
    }

    /// Stores a worker's token, only for the node `node` if that is given, and returns it.
    async fn token(&self, id: &str, node: Option<&str>) -> String {
        let mut data = BTreeMap::from([("token-secret", SECRET), (USAGE_WORKER, "true")]);
        data.extend(node.map(|node| (tokens::NODE_NAME, node)));
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let data: BTreeMap<&str, String> = data.into_iter().map(|(key, text)| (key, encode(text))).collect();
        let key = format!("/registry/core/secrets/kube-system/bootstrap-token-{id}");
        self.put(&key, serde_json::json!({ "data": data })).await;
        let ca_hash = tokens::ca_hash(self.keys.authority.certificate_pem()).unwrap();
        JoinToken { ca_hash, id: id.to_owned(), secret: SECRET.to_owned() }.to_string()
    }

    fn client(&self, network: TlsNetwork, purpose: Purpose) -> JoinClient<Channel> {
        let options = ChannelOptions {
            purpose,
            organization: Some(MASTERS_ORGANIZATION),
            connect_timeout: Duration::from_secs(5),
        };
        JoinClient::new(channel(Arc::new(network), &self.address, options).unwrap())
    }

    async fn join(&self, token: &str, name: &str) -> Result<JoinWorkerResponse, Status> {
        let ca_sha256 = token.parse::<JoinToken>().unwrap().ca_hash;
        let request = JoinWorkerRequest {
            token: token.to_owned(),
            name: name.to_owned(),
            csr_pem: csr(),
            addresses: vec!["127.0.0.1".to_owned()],
            serving_csr_pem: csr(),
        };
        let mut client = self.client(TlsNetwork::joining(), Purpose::Join { ca_sha256 });
        Ok(client.join_worker(request).await?.into_inner())
    }

    /// Asks for new certificates with a certificate that was issued to `subject` this long ago.
    async fn renew(&self, subject: &Subject, ago: Duration) -> Result<RenewCertificateResponse, Status> {
        let validity = Validity::new(SystemTime::now() - ago, LIFETIME);
        let old = self.keys.authority.issue(subject, &[], Usage::Peer, validity).unwrap();
        let network = TlsNetwork::new(&material(&self.keys, old)).unwrap();
        let request = RenewCertificateRequest { csr_pem: csr(), serving_csr_pem: csr() };
        Ok(self.client(network, Purpose::Peer).renew_certificate(request).await?.into_inner())
    }
}

fn material(keys: &ClusterKeys, issued: Issued) -> TlsMaterial {
    TlsMaterial {
        ca_pem: keys.authority.certificate_pem().to_owned(),
        certificate_pem: issued.chain_pem,
        key_pem: issued.key_pem,
    }
}

fn csr() -> String {
    let key = KeyPair::generate().unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_buys_no_name_that_is_somebody_s() {
    let master = Master::start().await;
    let (any, only_w1) = (master.token("anyone", None).await, master.token("onlyw1", Some("w1")).await);
    master.join(&any, "w1").await.unwrap();
    for name in ["10.96.0.1", "kubernetes.default.svc", "localhost"] {
        assert_eq!(master.join(&any, name).await.unwrap_err().code(), Code::InvalidArgument, "{name}");
    }
    let own = master.consensus.members()[0].name.clone();
    assert_eq!(master.join(&any, &own).await.unwrap_err().code(), Code::InvalidArgument, "a master");

    master.put_node("w1").await;
    let taken = master.join(&any, "w1").await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    assert!(taken.message().contains("ephor token create --node w1"), "{taken}");
    master.join(&only_w1, "w1").await.unwrap();
    assert_eq!(master.join(&only_w1, "w2").await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_s_certificates_are_renewed_also_after_they_have_expired() {
    let master = Master::start().await;
    master.put_node("w1").await;
    let w1 = Subject::node("w1");
    for ago in [LIFETIME / 2, LIFETIME * 2] {
        let renewed = master.renew(&w1, ago).await.unwrap();
        for pem in [&renewed.certificate_pem, &renewed.serving_certificate_pem] {
            let info = CertificateInfo::from_pem(pem).unwrap();
            assert_eq!(info.identity.common_name, "system:node:w1");
            assert!(info.renew_at() > SystemTime::now());
        }
    }
    let deleted = master.renew(&Subject::node("w2"), LIFETIME * 2).await.unwrap_err();
    assert_eq!(deleted.code(), Code::PermissionDenied);
    // Others are not let in with what has expired, and get nothing here with what is good.
    master.renew(&Subject::new("kubernetes-admin", "system:masters"), LIFETIME * 2).await.unwrap_err();
    let admin = master.renew(&Subject::new("kubernetes-admin", "system:masters"), LIFETIME / 2).await;
    assert_eq!(admin.unwrap_err().code(), Code::Unauthenticated);
}

#[test]
fn a_node_gets_no_certificate_for_an_address_it_does_not_call_from() {
    let remote = Some("10.0.0.7".parse().unwrap());
    only_from(&["10.0.0.7".into()], remote).unwrap();
    only_from(&["10.96.0.1".into()], remote).unwrap_err();
    only_from(&["10.0.0.7".into()], None).unwrap_err();
}
