//! The production network: TCP with TLS 1.3 in both directions, identities from
//! certificate subjects. Names in certificates are not compared with addresses:
//! identity is never an address, and all members may come back with new ones.
//! `master/node` and `worker/node` make it from their certificates and replace
//! these when they are renewed.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::network::{ApiListener, Connection, Listener, Network, PeerIdentity, Purpose};

/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way at once; more clients wait in the accept queue.
const HANDSHAKES_MAX: usize = 256;

/// What a peer network cannot be made from.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A PEM file holds no usable certificate or key.
    #[error("{what} is not usable PEM: {reason}")]
    Pem {
        /// Which file.
        what: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// Key and certificates do not fit together.
    #[error("TLS material: {0}")]
    Tls(#[from] rustls::Error),
    /// The CA cannot check clients.
    #[error("client verification: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Certificates of one node, as PEM.
#[derive(Clone)]
pub struct TlsMaterial {
    /// The cluster's CA (the only trust anchor).
    pub ca_pem: String,
    /// The node's certificate, valid for client and server authentication.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
}

/// TCP and TLS.
pub struct TlsNetwork {
    configs: Shared,
}

type Shared = Arc<RwLock<Option<Configs>>>;

#[derive(Clone)]
struct Configs {
    client: Arc<ClientConfig>,
    /// For the API port.
    api: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
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
            // A joining node pins the CA by its hash, so the server sends it along.
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
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key()?)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let verifier = Arc::new(ChainVerifier { trust: Trust::Roots(roots), provider: provider.clone() });
        let trusting = || {
            let builder =
                ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions);
            Ok::<_, Error>(builder?.dangerous().with_custom_certificate_verifier(verifier.clone()))
        };
        let mut client = trusting()?.with_client_auth_cert(chain, key()?)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        let api = trusting()?.with_no_client_auth();
        Ok(Configs { client: Arc::new(client), api: Arc::new(api), server: Arc::new(server) })
    }
}

// === impl TlsNetwork ===

impl TlsNetwork {
    /// A network that proves itself with `material`.
    pub fn new(material: &TlsMaterial) -> Result<Self, Error> {
        Ok(Self { configs: Arc::new(RwLock::new(Some(material.configs()?))) })
    }

    /// A network of a node that has nothing yet: it can connect to join alone.
    pub fn joining() -> Self {
        Self { configs: Arc::default() }
    }

    fn client_config(&self, purpose: &Purpose) -> io::Result<Arc<ClientConfig>> {
        match purpose {
            Purpose::Peer => Ok(current(&self.configs)?.client),
            Purpose::Api => Ok(current(&self.configs)?.api),
            Purpose::Join { ca_sha256 } => {
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let verifier = ChainVerifier { trust: Trust::Pinned(*ca_sha256), provider: provider.clone() };
                let mut config = ClientConfig::builder_with_provider(provider)
                    .with_protocol_versions(&[&rustls::version::TLS13])
                    .map_err(io::Error::other)?
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(verifier))
                    .with_no_client_auth();
                config.alpn_protocols = vec![b"h2".to_vec()];
                Ok(Arc::new(config))
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
    /// For connections made and accepted from now on.
    fn set_material(&self, material: &TlsMaterial) -> Result<(), Error> {
        let configs = material.configs()?;
        *self.configs.write().unwrap_or_else(PoisonError::into_inner) = Some(configs);
        Ok(())
    }

    async fn connect(&self, address: &str, purpose: &Purpose) -> io::Result<Connection> {
        let config = self.client_config(purpose)?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let remote = stream.peer_addr()?;
        // The verifier looks at the chain alone; the name only has to parse.
        let name = ServerName::IpAddress(remote.ip().into());
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        let peer = identity(stream.get_ref().1.peer_certificates())?;
        Ok(Connection { stream: Box::new(stream), peer, remote })
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
                // Out of descriptors, as a rule: others end, then it goes on.
                tracing::warn!(%error, "accepting a peer connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Taken anew each time, so that renewed certificates are used at once.
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
    let peer = identity(stream.get_ref().1.peer_certificates())?;
    Ok(Connection { stream: Box::new(stream), peer, remote })
}

/// The subject of the first certificate of a chain.
fn identity(chain: Option<&[CertificateDer<'_>]>) -> io::Result<Option<PeerIdentity>> {
    let Some(certificate) = chain.and_then(<[_]>::first) else { return Ok(None) };
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().ok().map(ToOwned::to_owned)
    };
    let subject = parsed.subject();
    Ok(Some(PeerIdentity {
        common_name: subject.iter_common_name().find_map(text).unwrap_or_default(),
        organizations: subject.iter_organization().filter_map(text).collect(),
    }))
}

/// Checks that a server's chain leads to the cluster's CA, whatever its name.
#[derive(Debug)]
struct ChainVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Trust {
    Roots(Arc<RootCertStore>),
    Pinned([u8; 32]),
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = |hash: &[u8; 32]| {
            let is_pinned = |certificate: &&CertificateDer<'_>| Sha256::digest(certificate)[..] == hash[..];
            let authority = intermediates.iter().find(is_pinned).ok_or_else(|| {
                rustls::Error::General("the server's CA is not the one of the join token".into())
            })?;
            let mut roots = RootCertStore::empty();
            roots.add(authority.clone().into_owned())?;
            Ok::<_, rustls::Error>(Arc::new(roots))
        };
        let roots = match &self.trust {
            Trust::Roots(roots) => roots.clone(),
            Trust::Pinned(hash) => pinned(hash)?,
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
