//! Verification of peers' certificates by a function of the caller; signatures are verified as rustls does
//! it. [`ServerVerifier`] and [`ClientVerifier`] leave only the decision about a certificate to the caller.
//!
//! This file also decides for the peer port. A server's chain must lead to the cluster's CA (or to the CA
//! pinned by a join token), whatever its name; so must a client's. A node whose own certificate has expired
//! is accepted and marked as such, so that it can ask for a new one (`Connection::expired_peer`).

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

use crate::certificate::CertificateInfo;

/// Implements the methods of a verifier that concern signatures of the handshake, with `self.algorithms`.
macro_rules! verify_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, certificate, signature, &self.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signature, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

/// Verifies servers: `decide` accepts or refuses a certificate.
pub struct ServerVerifier<F> {
    decide: F,
    algorithms: WebPkiSupportedAlgorithms,
}

impl<F> ServerVerifier<F>
where
    F: Fn(&CertificateDer<'_>, &[CertificateDer<'_>], &ServerName<'_>, UnixTime) -> Result<(), Error>,
{
    /// Creates a verifier that calls `decide` with the server's certificate, the further certificates that
    /// the server sent, the name or address of the server, and the time.
    pub fn new(provider: &CryptoProvider, decide: F) -> Self {
        Self { decide, algorithms: provider.signature_verification_algorithms }
    }
}

impl<F> ServerCertVerifier for ServerVerifier<F>
where
    F: Fn(&CertificateDer<'_>, &[CertificateDer<'_>], &ServerName<'_>, UnixTime) -> Result<(), Error>
        + Send
        + Sync,
{
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        (self.decide)(leaf, issuers, name, now).map(|()| ServerCertVerified::assertion())
    }

    verify_signatures!();
}

impl<F> fmt::Debug for ServerVerifier<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier").finish_non_exhaustive()
    }
}

/// Verifies clients: `decide` accepts or refuses a certificate. Whether a client needs a certificate, and
/// which CAs the server names to clients, is decided by another verifier.
pub struct ClientVerifier<F> {
    base: Arc<dyn ClientCertVerifier>,
    decide: F,
    algorithms: WebPkiSupportedAlgorithms,
}

impl<F> ClientVerifier<F>
where
    F: Fn(&CertificateDer<'_>, &[CertificateDer<'_>], UnixTime) -> Result<(), Error>,
{
    /// Creates a verifier that requests certificates as `base` does, and calls `decide` with the client's
    /// certificate, the further certificates that the client sent, and the time.
    pub fn new(provider: &CryptoProvider, base: Arc<dyn ClientCertVerifier>, decide: F) -> Self {
        Self { base, decide, algorithms: provider.signature_verification_algorithms }
    }
}

impl<F> ClientCertVerifier for ClientVerifier<F>
where
    F: Fn(&CertificateDer<'_>, &[CertificateDer<'_>], UnixTime) -> Result<(), Error> + Send + Sync,
{
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.base.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.base.client_auth_mandatory()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        (self.decide)(leaf, issuers, now).map(|()| ClientCertVerified::assertion())
    }

    verify_signatures!();
}

impl<F> fmt::Debug for ClientVerifier<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier").field("base", &self.base).finish_non_exhaustive()
    }
}

/// The CA to which a server's chain must lead.
#[derive(Debug)]
pub(crate) enum Trust {
    /// One of these CAs.
    Roots(Arc<RootCertStore>),
    /// The CA whose DER has this SHA-256; the server sends the CA along.
    Pinned([u8; 32]),
}

/// Returns a verifier that accepts a server whose chain leads to a trusted CA, whatever the server's name.
pub(crate) fn chain_verifier(provider: &CryptoProvider, trust: Trust) -> Arc<dyn ServerCertVerifier> {
    let algorithms = provider.signature_verification_algorithms.all;
    Arc::new(ServerVerifier::new(provider, move |leaf, issuers, _, now| {
        let roots = trust.roots(issuers)?;
        let leaf = ParsedCertificate::try_from(leaf)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(&leaf, &roots, issuers, now, algorithms)
    }))
}

impl Trust {
    /// Returns the trusted CAs. Fails if the pinned CA is not among the certificates that the server sent.
    fn roots(&self, issuers: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, Error> {
        match self {
            Self::Roots(roots) => Ok(roots.clone()),
            Self::Pinned(hash) => {
                let authority = issuers
                    .iter()
                    .find(|certificate| Sha256::digest(certificate)[..] == hash[..])
                    .ok_or_else(|| {
                        Error::General("the server's CA is not the one of the join token".into())
                    })?;
                let mut roots = RootCertStore::empty();
                roots.add(authority.clone().into_owned())?;
                Ok(Arc::new(roots))
            }
        }
    }
}

/// Returns a verifier that accepts the clients `base` accepts, and also a client whose certificate names only
/// a node and has expired.
pub(crate) fn expired_node_verifier(
    provider: &CryptoProvider,
    base: Arc<dyn ClientCertVerifier>,
) -> Arc<dyn ClientCertVerifier> {
    let clients = base.clone();
    Arc::new(ClientVerifier::new(provider, base, move |leaf, issuers, now| {
        let verified = clients.verify_client_cert(leaf, issuers, now).map(drop);
        let Err(Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) = &verified
        else {
            return verified;
        };
        let Ok(info) = CertificateInfo::from_der(leaf) else { return verified };
        if !info.is_only_a_node() {
            return verified;
        }
        let end = info.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        clients.verify_client_cert(leaf, issuers, UnixTime::since_unix_epoch(end)).map(drop)
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use crate::{Listener, MASTERS_ORGANIZATION as MASTERS, NODES_ORGANIZATION as NODES};
    use crate::{Network, Purpose, TlsMaterial, TlsNetwork};

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    struct Authority {
        pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            Self { pem, issuer: Issuer::new(params, key) }
        }

        /// Makes a certificate that expired `ago`, or that expires in a day.
        fn issue(&self, user: &str, groups: &[&str], ago: Option<Duration>) -> TlsMaterial {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, user);
            for group in groups {
                params.distinguished_name.push(DnType::OrganizationName, *group);
            }
            let end = ago.map_or(SystemTime::now() + DAY, |ago| SystemTime::now() - ago);
            params.not_before = (end - 2 * DAY).into();
            params.not_after = end.into();
            let key = KeyPair::generate().unwrap();
            let certificate_pem = params.signed_by(&key, &self.issuer).unwrap().pem();
            TlsMaterial { ca_pem: self.pem.clone(), certificate_pem, key_pem: key.serialize_pem() }
        }
    }

    /// Connects and sends a byte; returns the part of the answer that the client reads.
    async fn call(address: &str, material: &TlsMaterial) -> std::io::Result<u8> {
        let network = TlsNetwork::new(material).unwrap();
        let mut stream = network.connect(address, &Purpose::Peer).await?.stream;
        stream.write_all(b"?").await?;
        stream.read_u8().await
    }

    /// Returns the next accepted client: its identity, and the identity of an expired certificate.
    async fn accept(listener: &mut Box<dyn Listener>) -> (Option<String>, Option<String>) {
        let mut connection = listener.accept().await.unwrap();
        connection.stream.write_all(b"!").await.unwrap();
        let name = |peer: Option<crate::PeerIdentity>| peer.map(|peer| peer.common_name);
        (name(connection.peer), name(connection.expired_peer))
    }

    #[tokio::test]
    async fn of_expired_certificates_only_a_node_s_own_is_let_in_and_as_such() {
        let (ours, other) = (Authority::new(), Authority::new());
        let master = ours.issue("m1", &[MASTERS], None);
        let mut listener = TlsNetwork::new(&master).unwrap().listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().to_string();
        let expired = Some(DAY);
        for refused in [
            ours.issue("m2", &[MASTERS], expired),
            ours.issue("admin", &["system:masters"], expired),
            ours.issue("system:node:w1", &[NODES, MASTERS], expired),
            // A certificate of another CA is refused.
            TlsMaterial { ca_pem: ours.pem.clone(), ..other.issue("system:node:w1", &[NODES], expired) },
            TlsMaterial { ca_pem: ours.pem.clone(), ..other.issue("system:node:w1", &[NODES], None) },
        ] {
            call(&address, &refused).await.unwrap_err();
        }
        for (material, known, known_expired) in [
            (ours.issue("system:node:w1", &[NODES], None), Some("system:node:w1"), None),
            (ours.issue("system:node:w1", &[NODES], expired), None, Some("system:node:w1")),
        ] {
            let (answer, accepted) = tokio::join!(call(&address, &material), accept(&mut listener));
            assert_eq!(answer.unwrap(), b'!');
            assert_eq!(accepted, (known.map(str::to_owned), known_expired.map(str::to_owned)));
        }
    }
}
