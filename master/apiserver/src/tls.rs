//! TLS of the API server: as a server with optional client certificates, and as a client of nodes. Converts
//! PEM to rustls configurations, which `server.rs` and `proxy/` use.

use std::sync::{Arc, PoisonError, RwLock};

use proto_env::{ClientVerifier, ServerVerifier};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// A certificate chain with its key, and the CA that verifies the peer; all in PEM.
#[derive(Clone)]
pub struct TlsIdentity {
    /// The leaf certificate, followed by its issuers.
    pub certificate_pem: String,
    /// The private key.
    pub key_pem: String,
    /// The cluster CA.
    pub ca_pem: String,
}

/// Why TLS material is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not PEM, or does not contain what it should.
    #[error("{what}: {source}")]
    Pem {
        /// Name of the material that is refused.
        what: &'static str,
        /// Error of the parser.
        source: rustls_pki_types::pem::Error,
    },
    /// rustls refuses the material.
    #[error("TLS material: {0}")]
    Tls(#[from] rustls::Error),
    /// The CA certificate cannot be used to verify peers.
    #[error("cluster CA: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn chain(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| Error::Pem { what, source })
}

fn key(pem: &str) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|source| Error::Pem { what: "private key", source })
}

fn roots(pem: &str) -> Result<Arc<RootCertStore>, Error> {
    let mut store = RootCertStore::empty();
    for certificate in chain(pem, "cluster CA")? {
        store.add(certificate)?;
    }
    Ok(Arc::new(store))
}

fn certified(identity: &TlsIdentity) -> Result<Arc<CertifiedKey>, Error> {
    let chain = chain(&identity.certificate_pem, "certificate chain")?;
    Ok(Arc::new(CertifiedKey::from_der(chain, key(&identity.key_pem)?, &provider())?))
}

/// The serving certificate, which can be replaced while the server runs.
#[derive(Debug)]
pub struct ServingCertificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl ServingCertificate {
    /// Replaces the certificate for new connections.
    ///
    /// # Errors
    ///
    /// Fails if the material does not parse; the old certificate stays.
    pub fn replace(&self, identity: &TlsIdentity) -> Result<(), Error> {
        let new = certified(identity)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }
}

/// TLS configuration of the server.
#[derive(Clone)]
pub struct Serving {
    /// Configuration for the acceptor.
    pub config: Arc<ServerConfig>,
    /// Handle that replaces the certificate.
    pub certificate: Arc<ServingCertificate>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Serving {
    /// Configures HTTP/2 and HTTP/1.1, with client certificates requested but not required.
    ///
    /// # Errors
    ///
    /// Fails if the material does not parse.
    pub fn new(identity: &TlsIdentity) -> Result<Self, Error> {
        let clients = WebPkiClientVerifier::builder_with_provider(roots(&identity.ca_pem)?, provider())
            .allow_unauthenticated()
            .build()
            .map_err(|e| Error::Tls(rustls::Error::General(e.to_string())))?;
        let certificate = Arc::new(ServingCertificate(RwLock::new(certified(identity)?)));
        // The handshake accepts the certificate of any client that has its key. Authentication checks later
        // whether the CA vouches for it, so that a wrong certificate gets 401, as in stock, instead of a
        // broken connection.
        let any_client = ClientVerifier::new(&provider(), Arc::clone(&clients), |_, _, _| Ok(()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(any_client))
            .with_cert_resolver(Arc::clone(&certificate) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), certificate, clients })
    }

    /// Returns whether the CA vouches for a client's chain at the time `now`.
    pub fn vouches_for(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> bool {
        let Some((leaf, issuers)) = chain.split_first() else { return false };
        self.clients.verify_client_cert(leaf, issuers, now).is_ok()
    }
}

/// TLS client that connects to nodes.
#[derive(Clone)]
pub struct NodeClient {
    verifier: Arc<WebPkiServerVerifier>,
    identity: TlsIdentity,
}

impl NodeClient {
    /// Creates a client with a certificate that nodes accept (O=`KUBELET_CLIENTS_ORGANIZATION`).
    ///
    /// # Errors
    ///
    /// Fails if the material does not parse.
    pub fn new(identity: TlsIdentity) -> Result<Self, Error> {
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots(&identity.ca_pem)?, provider()).build()?;
        certified(&identity)?;
        Ok(Self { verifier, identity })
    }

    /// Returns a configuration that accepts the node's certificate if it is valid for the node's address or
    /// name.
    ///
    /// # Errors
    ///
    /// Fails if rustls refuses the material.
    pub fn config(&self, node: &str) -> Result<Arc<ClientConfig>, Error> {
        let (inner, node) = (Arc::clone(&self.verifier), node.to_owned());
        let verifier = ServerVerifier::new(&provider(), move |leaf, issuers, address, now| {
            let verify =
                |name: &ServerName<'_>| inner.verify_server_cert(leaf, issuers, name, &[], now).map(drop);
            match (verify(address), ServerName::try_from(node.as_str())) {
                (Err(_), Ok(name)) => verify(&name),
                (result, _) => result,
            }
        });
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(
                chain(&self.identity.certificate_pem, "certificate chain")?,
                key(&self.identity.key_pem)?,
            )?;
        Ok(Arc::new(config))
    }
}
