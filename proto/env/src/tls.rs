//! The production network: TCP with TLS 1.3, both sides authenticated by certificate subjects. Names in
//! certificates are not compared with addresses, because an address is no identity: all members may come
//! back with new addresses. `master/node` and `worker/node` make it from their certificates and replace
//! those when they are renewed.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::certificate::CertificateInfo;
use crate::expiring::ExpiringStream;
use crate::network::{ApiListener, BoxedStream, Connection, Listener, Network, Purpose};
use crate::verifiers::{Trust, chain_verifier, expired_node_verifier};

/// Time that a node has to renew a certificate that has expired.
const RENEWAL_TIME: Duration = Duration::from_secs(60);
/// Share of a certificate's lifetime before its end in which a client closes the connections made with it,
/// chosen at random. Certificates are renewed when a third is left.
const GIVE_UP_EARLY: Range<f64> = 0.02..0.25;
/// Time limit of a client's TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of handshakes in progress; more clients wait in the accept queue.
const HANDSHAKES_MAX: usize = 256;

/// Why a peer network cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A PEM file holds no usable certificate or key.
    #[error("{what} is not usable PEM: {reason}")]
    Pem {
        /// The kind of PEM file.
        what: &'static str,
        /// The parser's message.
        reason: String,
    },
    /// The key and the certificates do not match.
    #[error("TLS material: {0}")]
    Tls(#[from] rustls::Error),
    /// The CA cannot be used to verify clients.
    #[error("client verification: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The certificates of one node, as PEM.
#[derive(Clone)]
pub struct TlsMaterial {
    /// The cluster's CA (the only trust anchor).
    pub ca_pem: String,
    /// The node's certificate, valid for client and server authentication.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
}

/// A network of TCP connections with TLS.
pub struct TlsNetwork {
    configs: Shared,
}

type Shared = Arc<RwLock<Option<Configs>>>;

#[derive(Clone)]
struct Configs {
    client: Arc<ClientConfig>,
    /// The configuration for connections to the API port.
    api: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    /// The node's own certificate.
    own: Arc<CertificateInfo>,
}

// === impl TlsMaterial ===

impl std::fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsMaterial(..)")
    }
}

impl TlsMaterial {
    fn configs(&self) -> Result<Configs, Error> {
        let certificates = |what, pem: &str| {
            CertificateDer::pem_slice_iter(pem.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| Error::Pem { what, reason: error.to_string() })
        };
        let authorities = certificates("CA", &self.ca_pem)?;
        let mut chain = certificates("certificate", &self.certificate_pem)?;
        let key = || {
            PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
                .map_err(|error| Error::Pem { what: "key", reason: error.to_string() })
        };
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            roots.add(authority.clone())?;
            // The server sends the CA along, because a joining node knows only the CA's hash.
            if !chain.contains(authority) {
                chain.push(authority.clone());
            }
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = &[&rustls::version::TLS13];
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(expired_node_verifier(&provider, clients))
            .with_single_cert(chain.clone(), key()?)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        // No session is resumed: it would not be verified again, and connections last too long for
        // resumption to pay.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let verifier = chain_verifier(&provider, Trust::Roots(roots));
        let trusting = || {
            let builder =
                ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions);
            Ok::<_, Error>(builder?.dangerous().with_custom_certificate_verifier(verifier.clone()))
        };
        let mut client = trusting()?.with_client_auth_cert(chain, key()?)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        let api = trusting()?.with_no_client_auth();
        let own = Arc::new(CertificateInfo::from_pem(&self.certificate_pem)?);
        Ok(Configs { client: Arc::new(client), api: Arc::new(api), server: Arc::new(server), own })
    }
}

// === impl TlsNetwork ===

impl TlsNetwork {
    /// Makes a network that authenticates itself with `material`.
    pub fn new(material: &TlsMaterial) -> Result<Self, Error> {
        Ok(Self { configs: Arc::new(RwLock::new(Some(material.configs()?))) })
    }

    /// Makes the network of a node without certificates: it can only connect to join.
    pub fn joining() -> Self {
        Self { configs: Arc::default() }
    }

    /// Returns the TLS configuration for a purpose, and this node's certificate if it is shown.
    fn client_config(
        &self,
        purpose: &Purpose,
    ) -> io::Result<(Arc<ClientConfig>, Option<Arc<CertificateInfo>>)> {
        match purpose {
            Purpose::Peer => {
                let configs = current(&self.configs)?;
                Ok((configs.client, Some(configs.own)))
            }
            Purpose::Api => Ok((current(&self.configs)?.api, None)),
            Purpose::Join { ca_sha256 } => {
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let verifier = chain_verifier(&provider, Trust::Pinned(*ca_sha256));
                let mut config = ClientConfig::builder_with_provider(provider)
                    .with_protocol_versions(&[&rustls::version::TLS13])
                    .map_err(io::Error::other)?
                    .dangerous()
                    .with_custom_certificate_verifier(verifier)
                    .with_no_client_auth();
                config.alpn_protocols = vec![b"h2".to_vec()];
                Ok((Arc::new(config), None))
            }
        }
    }
}

fn current(configs: &Shared) -> io::Result<Configs> {
    let configs = configs.read().unwrap_or_else(PoisonError::into_inner).clone();
    configs.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "no certificates yet: join first"))
}

#[async_trait]
impl Network for TlsNetwork {
    /// Sets the certificates of connections made and accepted from now on.
    fn set_material(&self, material: &TlsMaterial) -> Result<(), Error> {
        let configs = material.configs()?;
        *self.configs.write().unwrap_or_else(PoisonError::into_inner) = Some(configs);
        Ok(())
    }

    async fn connect(&self, address: &str, purpose: &Purpose) -> io::Result<Connection> {
        let (config, own) = self.client_config(purpose)?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let remote = stream.peer_addr()?;
        // The verifier checks only the chain; the name is not compared but has to parse.
        let name = ServerName::IpAddress(remote.ip().into());
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        let info = first_of(stream.get_ref().1.peer_certificates())?;
        let stream: BoxedStream = Box::new(stream);
        let end = [own.as_deref(), info.as_ref()].into_iter().flatten().map(give_up_at).min();
        let stream: BoxedStream = match end {
            // A node whose own certificate has expired uses this connection to get a new one.
            Some(end) if end > SystemTime::now() => Box::new(ExpiringStream::new(stream, end)),
            _ => stream,
        };
        Ok(Connection { stream, peer: info.map(|info| info.identity), expired_peer: None, remote })
    }

    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        let listener = TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        let (sender, receiver) = mpsc::channel(HANDSHAKES_MAX);
        current(&self.configs)?;
        let task = tokio::spawn(accept_loop(listener, self.configs.clone(), sender));
        Ok(Box::new(TlsListener { receiver, local, task: task.abort_handle() }))
    }

    async fn listen_api(&self, address: SocketAddr) -> io::Result<ApiListener> {
        Ok(ApiListener::Tcp(TcpListener::bind(address).await?))
    }
}

struct TlsListener {
    receiver: mpsc::Receiver<Connection>,
    local: SocketAddr,
    task: tokio::task::AbortHandle,
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait]
impl Listener for TlsListener {
    async fn accept(&mut self) -> io::Result<Connection> {
        self.receiver.recv().await.ok_or_else(|| io::Error::other("the listener has ended"))
    }

    fn local_address(&self) -> SocketAddr {
        self.local
    }
}

async fn accept_loop(listener: TcpListener, configs: Shared, sender: mpsc::Sender<Connection>) {
    let permits = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Usually out of file descriptors: accepting works again once other connections have ended.
                tracing::warn!(%error, "accepting a peer connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Read for each connection, so that renewed certificates are used at once.
        let Ok(configs) = current(&configs) else { return };
        let (acceptor, sender) = (TlsAcceptor::from(configs.server), sender.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(acceptor, stream, remote));
            match handshake.await {
                Ok(Ok(connection)) => drop(sender.send(connection).await),
                Ok(Err(error)) => tracing::debug!(%remote, %error, "a peer's handshake failed"),
                Err(_) => tracing::debug!(%remote, "a peer's handshake took too long"),
            }
        });
    }
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream, remote: SocketAddr) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let info = first_of(stream.get_ref().1.peer_certificates())?;
    let stream: BoxedStream = Box::new(stream);
    let Some(info) = info else {
        return Ok(Connection { stream, peer: None, expired_peer: None, remote });
    };
    let now = SystemTime::now();
    if info.is_expired(now) {
        // The verifier accepts only expired certificates of nodes; any other one expired since it was
        // verified.
        if !info.is_only_a_node() {
            let message = format!("the certificate of {:?} has expired", info.identity.common_name);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        let stream = Box::new(ExpiringStream::new(stream, now + RENEWAL_TIME));
        return Ok(Connection { stream, peer: None, expired_peer: Some(info.identity), remote });
    }
    let stream = Box::new(ExpiringStream::new(stream, info.not_after));
    Ok(Connection { stream, peer: Some(info.identity), expired_peer: None, remote })
}

/// Returns subject and validity of the first certificate of a chain.
fn first_of(chain: Option<&[CertificateDer<'_>]>) -> io::Result<Option<CertificateInfo>> {
    let info = chain.and_then(<[_]>::first).map(|certificate| CertificateInfo::from_der(certificate));
    info.transpose().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

/// Returns when a client closes a connection made with a certificate: at a random time after the
/// certificate should have been renewed and before it expires, so that a node's connections are not all
/// remade at once.
fn give_up_at(info: &CertificateInfo) -> SystemTime {
    let early = info.lifetime().mul_f64(rand::random_range(GIVE_UP_EARLY));
    let at = info.not_after - early;
    if at > SystemTime::now() { at } else { info.not_after }
}
