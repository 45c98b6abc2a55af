//! The ways into a live cluster: its API, the Admin service of every master, the
//! chaos agent of every node. One operator's certificate opens all of them.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proto_env::grpc::{ChannelOptions, channel};
use proto_env::{MASTERS_ORGANIZATION, Purpose, TlsMaterial, TlsNetwork};
use proto_wire::chaos::agent_client::AgentClient;
use proto_wire::chaos::{
    DescribeRequest, DescribeResponse, InjectRequest, StartNodeRequest, UndoRequest, Undone,
};
use proto_wire::cluster::admin_client::AdminClient;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;

use crate::effect::Effect;

/// Whom the certificate of every agent names.
pub const AGENTS_ORGANIZATION: &str = "system:ephor:chaos";
/// Bound on connecting to a node, TLS handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(800);
/// How long an agent may take: killing waits until the process is gone.
const AGENT_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a cluster cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificates of the kubeconfig.
    #[error("the operator's certificate: {0}")]
    Certificate(String),
    /// The address of a node.
    #[error("{0} is no HOST:PORT")]
    Address(String),
    /// A node, or what it said.
    #[error("{0}")]
    Node(String),
}

/// The keys to all of them.
#[derive(Clone)]
pub struct Access {
    network: Arc<TlsNetwork>,
    api: Arc<ClientConfig>,
    ca_hash: [u8; 32],
}

fn certificate(error: impl std::fmt::Display) -> Error {
    Error::Certificate(error.to_string())
}

/// What a call of a service came to, its deadline kept.
///
/// # Errors
/// What the service said, or that it said nothing.
pub async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(Error::Node(status.message().to_owned())),
        Err(_) => Err(Error::Node(format!("no answer within {limit:?}"))),
    }
}

impl Access {
    /// With an operator's certificate, of `system:masters`.
    ///
    /// # Errors
    /// Where it is no usable PEM.
    pub fn new(material: &TlsMaterial) -> Result<Self, Error> {
        let network = Arc::new(TlsNetwork::new(material).map_err(certificate)?);
        let authorities =
            CertificateDer::pem_slice_iter(material.ca_pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        let authorities = authorities.map_err(certificate)?;
        let first = authorities.first().ok_or_else(|| certificate("no CA"))?;
        let ca_hash = Sha256::digest(first).into();
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(certificate)?;
        }
        let chain = CertificateDer::pem_slice_iter(material.certificate_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>();
        let key = PrivateKeyDer::from_pem_slice(material.key_pem.as_bytes()).map_err(certificate)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let api = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(certificate)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.map_err(certificate)?, key)
            .map_err(certificate)?;
        Ok(Self { network, api: Arc::new(api), ca_hash })
    }

    /// SHA-256 of the CA, which join tokens carry.
    pub fn ca_hash(&self) -> [u8; 32] {
        self.ca_hash
    }

    /// TLS for the API port, as the operator.
    pub fn api(&self) -> TlsConnector {
        TlsConnector::from(self.api.clone())
    }

    /// The Admin service of the master at `HOST:PORT`. Its calls need a deadline.
    ///
    /// # Errors
    /// Where the address is none.
    pub fn admin(&self, address: &str) -> Result<AdminClient<Channel>, Error> {
        Ok(AdminClient::new(self.channel(address, MASTERS_ORGANIZATION)?))
    }

    /// The agent at `HOST:PORT`.
    ///
    /// # Errors
    /// Where the address is none.
    pub fn agent(&self, address: &str) -> Result<Agent, Error> {
        Ok(Agent {
            client: AgentClient::new(self.channel(address, AGENTS_ORGANIZATION)?),
            address: address.to_owned(),
        })
    }

    fn channel(&self, address: &str, organization: &'static str) -> Result<Channel, Error> {
        let options = ChannelOptions {
            purpose: Purpose::Peer,
            organization: Some(organization),
            connect_timeout: CONNECT_TIMEOUT,
        };
        channel(self.network.clone(), address, options).map_err(|_| Error::Address(address.to_owned()))
    }
}

/// The agent of a node.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient<Channel>,
    address: String,
}

impl Agent {
    /// Where it is, as `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it holds.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn describe(&self) -> Result<DescribeResponse, Error> {
        within(AGENT_TIMEOUT, self.client.clone().describe(DescribeRequest {})).await
    }

    /// Puts a fault on its node for `limit`, and says how often it took effect at once.
    ///
    /// # Errors
    /// Where it cannot, or does not answer; the fault may be there in that case.
    pub async fn inject(&self, id: &str, effect: &Effect, limit: Duration) -> Result<u64, Error> {
        let effect_json = serde_json::to_string(effect).map_err(|error| Error::Node(error.to_string()))?;
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let request = InjectRequest { id: id.to_owned(), effect_json, limit_ms };
        Ok(within(AGENT_TIMEOUT, self.client.clone().inject(request)).await?.fired)
    }

    /// Takes faults away, or all where `ids` is empty.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn undo(&self, ids: Vec<String>, keep_down: bool) -> Result<Vec<Undone>, Error> {
        let request = UndoRequest { ids, keep_down };
        Ok(within(AGENT_TIMEOUT, self.client.clone().undo(request)).await?.undone)
    }

    /// Starts a master on its node, which joins.
    ///
    /// # Errors
    /// Where it cannot, or does not answer.
    pub async fn start_node(&self, join: Vec<String>, token: String) -> Result<(), Error> {
        let request = StartNodeRequest { join, token };
        within(AGENT_TIMEOUT, self.client.clone().start_node(request)).await.map(drop)
    }
}

/// The address in `HOST:PORT`, where the host is one.
///
/// # Errors
/// Where it is a name, or nothing of the kind.
pub fn host_of(address: &str) -> io::Result<IpAddr> {
    let parsed = address.parse::<std::net::SocketAddr>();
    parsed
        .map(|address| address.ip())
        .map_err(|_| io::Error::other(format!("{address} is no address and port")))
}
