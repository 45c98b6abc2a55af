//! TLS configurations built from a node's PEM files.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proto_env::TlsMaterial;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Reasons why a TLS configuration cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is not valid PEM.
    #[error("{0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// Key and certificate do not match, or are invalid.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    /// The CA cannot be used to verify clients.
    #[error("{0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// The server name is invalid.
    #[error("{0}")]
    Name(#[from] InvalidDnsNameError),
}

fn roots(material: &TlsMaterial) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(material.ca_pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

/// Builds a client configuration that trusts the cluster's CA and has no client certificate.
pub fn trusting(material: &TlsMaterial) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots(material)?).with_no_client_auth()))
}

/// Builds the configuration of the node's HTTPS server: it requests a certificate of the cluster's CA, and
/// the agent decides which clients are allowed.
pub fn serving(material: &TlsMaterial) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots(material)?),
        provider.clone(),
    )
    .allow_unauthenticated()
    .build()?;
    let chain =
        CertificateDer::pem_slice_iter(material.certificate_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(material.key_pem.as_bytes())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Builds a kubeconfig with this node's credentials.
pub fn kubeconfig(server: &str, material: &TlsMaterial) -> String {
    let encode = |pem: &str| STANDARD.encode(pem);
    serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "node",
        "clusters": [{ "name": "ephor", "cluster": {
            "server": server, "certificate-authority-data": encode(&material.ca_pem),
        }}],
        "users": [{ "name": "node", "user": {
            "client-certificate-data": encode(&material.certificate_pem),
            "client-key-data": encode(&material.key_pem),
        }}],
        "contexts": [{ "name": "node", "context": { "cluster": "ephor", "user": "node" } }],
    })
    .to_string()
}
