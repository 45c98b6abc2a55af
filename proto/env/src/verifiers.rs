//! Verification of certificates on the peer port. A server's chain must lead to the cluster's CA (or to the
//! CA pinned by a join token), whatever its name; so must a client's. A node whose own certificate has
//! expired is accepted and marked as such, so that it can ask for a new one (`Connection::expired_peer`).

use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

use crate::certificate::CertificateInfo;

/// Checks that a server's chain leads to the cluster's CA, whatever its name.
#[derive(Debug)]
pub struct ChainVerifier {
    /// The trusted CA.
    pub trust: Trust,
    /// The implementation that checks signatures.
    pub provider: Arc<CryptoProvider>,
}

/// The CA a server's chain must lead to.
#[derive(Debug)]
pub enum Trust {
    /// One of these CAs.
    Roots(Arc<RootCertStore>),
    /// The CA whose DER has this SHA-256; the server sends the CA along.
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
    ) -> Result<ServerCertVerified, Error> {
        let pinned = |hash: &[u8; 32]| {
            let is_pinned = |certificate: &&CertificateDer<'_>| Sha256::digest(certificate)[..] == hash[..];
            let authority = intermediates
                .iter()
                .find(is_pinned)
                .ok_or_else(|| Error::General("the server's CA is not the one of the join token".into()))?;
            let mut roots = RootCertStore::empty();
            roots.add(authority.clone().into_owned())?;
            Ok::<_, Error>(Arc::new(roots))
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
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Checks that a client's chain leads to the cluster's CA and is valid now; a chain that names only a node
/// may have expired.
#[derive(Debug)]
pub struct ClientVerifier(pub Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now);
        let Err(Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) = &verified
        else {
            return verified;
        };
        let Ok(info) = CertificateInfo::from_der(end_entity) else { return verified };
        if !info.is_only_a_node() {
            return verified;
        }
        let end = info.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.0.verify_client_cert(end_entity, intermediates, UnixTime::since_unix_epoch(end))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
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
