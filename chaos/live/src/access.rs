//! Clients for a live cluster: its API, the Admin service of every master, the chaos agent of every node. One
//! operator's certificate is accepted by all of them.

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

/// Organization in the certificate of every agent.
pub const AGENTS_ORGANIZATION: &str = "system:ephor:chaos";
/// Maximum time to connect to a node, TLS handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(800);
/// Maximum time of a call to an agent: killing waits until the process is gone.
const AGENT_TIMEOUT: Duration = Duration::from_secs(15);

/// Reason why a cluster cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificates of the kubeconfig are unusable.
    #[error("the operator's certificate: {0}")]
    Certificate(String),
    /// The address of a node is not `HOST:PORT`.
    #[error("{0} is no HOST:PORT")]
    Address(String),
    /// A node did not answer, or answered with an error.
    #[error("{0}")]
    Node(String),
}

/// An operator's credentials, and the network to connect with.
#[derive(Clone)]
pub struct Access {
    network: Arc<TlsNetwork>,
    api: Arc<ClientConfig>,
    ca_hash: [u8; 32],
}

fn certificate(error: impl std::fmt::Display) -> Error {
    Error::Certificate(error.to_string())
}

/// Awaits a gRPC call for at most `limit` and returns its answer.
///
/// # Errors
/// Fails with what the service answered, or if it did not answer in time.
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
    /// Creates the access from an operator's certificate, one of `system:masters`.
    ///
    /// # Errors
    /// Fails if the certificate material is no usable PEM.
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

    /// Returns the SHA-256 of the CA, which join tokens carry.
    pub fn ca_hash(&self) -> [u8; 32] {
        self.ca_hash
    }

    /// Returns the TLS connector for the API port, with the operator's certificate.
    pub fn api(&self) -> TlsConnector {
        TlsConnector::from(self.api.clone())
    }

    /// Returns a client of the Admin service of the master at `HOST:PORT`. The caller sets deadlines on its
    /// calls.
    ///
    /// # Errors
    /// Fails if the address does not parse.
    pub fn admin(&self, address: &str) -> Result<AdminClient<Channel>, Error> {
        Ok(AdminClient::new(self.channel(address, MASTERS_ORGANIZATION)?))
    }

    /// Returns a client of the agent at `HOST:PORT`.
    ///
    /// # Errors
    /// Fails if the address does not parse.
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

/// A client of a node's agent.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient<Channel>,
    address: String,
}

impl Agent {
    /// Returns the agent's address, as `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Asks the agent what its node is and which faults it holds.
    ///
    /// # Errors
    /// Fails if the agent does not answer.
    pub async fn describe(&self) -> Result<DescribeResponse, Error> {
        within(AGENT_TIMEOUT, self.client.clone().describe(DescribeRequest {})).await
    }

    /// Applies a fault to the agent's node for `limit`; returns how often it took effect at once.
    ///
    /// # Errors
    /// Fails if the agent cannot apply it or does not answer; in the latter case the fault may have been
    /// applied.
    pub async fn inject(&self, id: &str, effect: &Effect, limit: Duration) -> Result<u64, Error> {
        let effect_json = serde_json::to_string(effect).map_err(|error| Error::Node(error.to_string()))?;
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let request = InjectRequest { id: id.to_owned(), effect_json, limit_ms };
        Ok(within(AGENT_TIMEOUT, self.client.clone().inject(request)).await?.fired)
    }

    /// Undoes the faults of `ids`, or all if `ids` is empty; with `keep_down` killed processes are not
    /// started.
    ///
    /// # Errors
    /// Fails if the agent does not answer.
    pub async fn undo(&self, ids: Vec<String>, keep_down: bool) -> Result<Vec<Undone>, Error> {
        let request = UndoRequest { ids, keep_down };
        Ok(within(AGENT_TIMEOUT, self.client.clone().undo(request)).await?.undone)
    }

    /// Starts a master on the agent's node so that it joins the masters `join` with `token`.
    ///
    /// # Errors
    /// Fails if the agent cannot start it or does not answer.
    pub async fn start_node(&self, join: Vec<String>, token: String) -> Result<(), Error> {
        let request = StartNodeRequest { join, token };
        within(AGENT_TIMEOUT, self.client.clone().start_node(request)).await.map(drop)
    }
}

/// Returns the IP address in `HOST:PORT`.
///
/// # Errors
/// Fails if the host is a name, or the text has another form.
pub fn host_of(address: &str) -> io::Result<IpAddr> {
    let parsed = address.parse::<std::net::SocketAddr>();
    parsed
        .map(|address| address.ip())
        .map_err(|_| io::Error::other(format!("{address} is no address and port")))
}
