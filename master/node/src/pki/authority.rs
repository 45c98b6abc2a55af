//! The cluster CA: signs the certificates of masters, nodes, components and
//! operators. The caller decides whom a certificate names, never the request. The
//! serving certificates of nodes come from a CA of their own, which only API
//! servers trust: kubectl would not trust a node that got a master's name into
//! its certificate.

use std::net::IpAddr;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::Error;

/// Time by which a certificate's validity begins in the past, because clocks differ; a tenth of its
/// lifetime if that is shorter.
const BACKDATE: Duration = Duration::hours(1);
/// How long before it was made the CA's validity begins.
pub const CA_BACKDATE: std::time::Duration = std::time::Duration::from_secs(3600);
/// Lifetime of the CA in days, longer than that of most machines.
const CA_DAYS: i64 = 3650;
/// Default lifetime of all other certificates: a year, as in Kubernetes.
pub const DEFAULT_LIFETIME: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);
/// Prefix of the PKCS#8 encoding of an Ed25519 key (RFC 8410), before the 32 bytes of the key.
const ED25519_PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Client authentication: the holder proves its identity to servers.
    Client,
    /// Server authentication: the holder serves under the names in the certificate.
    Server,
    /// Both client and server authentication, on the peer port.
    Peer,
}

/// Period in which a certificate is valid.
#[derive(Debug, Clone, Copy)]
pub struct Validity {
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Validity {
    /// Validity from shortly before `now` for `lifetime`.
    pub fn new(now: SystemTime, lifetime: std::time::Duration) -> Self {
        let now = OffsetDateTime::from(now);
        let lifetime = Duration::try_from(lifetime).unwrap_or(Duration::days(CA_DAYS));
        Self { not_before: now - BACKDATE.min(lifetime / 10), not_after: now + lifetime }
    }
}

/// The subject of a certificate: CN is the user, O the groups.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The common name.
    pub user: String,
    /// The organizations.
    pub groups: Vec<String>,
}

impl Subject {
    /// A subject in a single group.
    pub fn new(user: impl Into<String>, group: &str) -> Self {
        Self { user: user.into(), groups: vec![group.to_owned()] }
    }

    /// The subject of a node: `system:node:NAME` in `system:nodes`.
    pub fn node(name: &str) -> Self {
        Self::new(format!("system:node:{name}"), "system:nodes")
    }
}

/// A signed certificate with its key.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The leaf followed by the CA, PEM.
    pub chain_pem: String,
    /// The private key, PKCS#8 PEM.
    pub key_pem: String,
}

/// The CA with its private key.
pub struct Authority {
    certificate_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Creates a self-signed CA; `cluster_id` makes its name unique.
    pub fn create(cluster_id: &str, now: OffsetDateTime) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = ca_params(&format!("ephor-ca-{cluster_id}"));
        params.not_before = now - CA_BACKDATE;
        params.not_after = now + Duration::days(CA_DAYS);
        let certificate_pem = params.self_signed(&key)?.pem();
        Self::load(certificate_pem, key.serialize_pem())
    }

    /// Reads a CA from its two PEM files.
    pub fn load(certificate_pem: String, key_pem: String) -> Result<Self, Error> {
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, KeyPair::from_pem(&key_pem)?)?;
        Ok(Self { certificate_pem, key_pem, issuer })
    }

    /// The CA certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The CA's private key, PEM: handed to joining masters only.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Derives the CA of the nodes' serving certificates. Its key comes from this CA's key, so
    /// that every master has it and none has to transfer it; two calls return certificates that
    /// differ only in the signature.
    ///
    /// # Errors
    /// Fails if the derived key is rejected, which does not happen.
    pub fn node_serving(&self) -> Result<Self, Error> {
        let mut pkcs8 = Zeroizing::new(ED25519_PKCS8.to_vec());
        pkcs8.extend_from_slice(&self.secret(b"ephor node serving CA\0")[..]);
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(&pkcs8[..]))?;
        let mut params = ca_params("ephor-node-serving-ca");
        params.not_before = OffsetDateTime::UNIX_EPOCH;
        params.not_after = OffsetDateTime::UNIX_EPOCH + Duration::days(200 * 365);
        Self::load(params.self_signed(&key)?.pem(), key.serialize_pem())
    }

    /// Derives the secret that the keys of ServiceAccount tokens come from: every master has it.
    pub fn service_account_secret(&self) -> Zeroizing<[u8; 32]> {
        self.secret(b"ephor service account keys\0")
    }

    /// Derives a secret for one purpose from the CA's key.
    fn secret(&self, purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut hash = Sha256::new_with_prefix(purpose);
        hash.update(&Zeroizing::new(self.issuer.key().serialize_der())[..]);
        Zeroizing::new(hash.finalize().into())
    }

    /// Creates a key and a certificate for it. `names` are DNS names or addresses.
    ///
    /// # Errors
    /// Fails if a name is neither a DNS name nor an address.
    pub fn issue(
        &self,
        subject: &Subject,
        names: &[String],
        usage: Usage,
        validity: Validity,
    ) -> Result<Issued, Error> {
        let key = KeyPair::generate()?;
        let params = leaf(subject, names, usage, validity)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            chain_pem: format!("{}{}", certificate.pem(), self.certificate_pem),
            key_pem: key.serialize_pem(),
        })
    }

    /// Signs the public key of a request for a subject and names that the
    /// caller has established; what the request asks for itself is ignored.
    pub fn sign(
        &self,
        csr_pem: &str,
        subject: &Subject,
        names: &[String],
        usage: Usage,
        validity: Validity,
    ) -> Result<String, Error> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        let certificate =
            leaf(subject, names, usage, validity)?.signed_by(&request.public_key, &self.issuer)?;
        Ok(format!("{}{}", certificate.pem(), self.certificate_pem))
    }
}

fn name(subject: &Subject) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for group in &subject.groups {
        name.push(DnType::OrganizationName, group.as_str());
    }
    name.push(DnType::CommonName, subject.user.as_str());
    name
}

fn ca_params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&Subject { user: common_name.to_owned(), groups: vec![] });
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn leaf(
    subject: &Subject,
    names: &[String],
    usage: Usage,
    validity: Validity,
) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(subject);
    params.subject_alt_names = names.iter().map(|n| alt_name(n)).collect::<Result<_, _>>()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = match usage {
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Peer => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn alt_name(name: &str) -> Result<SanType, Error> {
    match name.parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ok(SanType::DnsName(name.try_into()?)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto_env::CertificateInfo;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::{CertificateError, RootCertStore};

    use super::*;
    use crate::pki::files::certificates;

    const YEAR: std::time::Duration = DEFAULT_LIFETIME;

    fn year_from_now() -> Validity {
        Validity::new(SystemTime::now(), YEAR)
    }

    fn csr(params: CertificateParams) -> String {
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    /// Verifies a server certificate for `name` as a client that trusts `authority` does at time `at`.
    fn verify(authority: &Authority, chain: &str, name: &str, at: SystemTime) -> Result<(), rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(certificates(authority.certificate_pem()).unwrap().remove(0)).unwrap();
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let chain = certificates(chain).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap());
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], at).map(drop)
    }

    #[test]
    fn a_request_cannot_choose_its_own_subject() {
        let authority = Authority::create("test", OffsetDateTime::now_utc()).unwrap();
        let mut wanted = CertificateParams::default();
        wanted.distinguished_name = name(&Subject::new("admin", "system:masters"));
        let names = ["10.0.0.1".to_owned()];
        let chain = authority
            .sign(&csr(wanted), &Subject::node("w1"), &names, Usage::Client, year_from_now())
            .unwrap();
        let named = CertificateInfo::from_pem(&chain).unwrap().identity;
        assert_eq!(named.common_name, "system:node:w1");
        assert_eq!(named.organizations, ["system:nodes"]);
    }

    #[test]
    fn a_ca_signs_the_same_after_it_was_read_back() {
        let made = Authority::create("test", OffsetDateTime::now_utc()).unwrap();
        let read = Authority::load(made.certificate_pem().into(), made.key_pem().into()).unwrap();
        let subject = Subject::new("a", "b");
        let issued = read.issue(&subject, &["localhost".into()], Usage::Server, year_from_now()).unwrap();
        verify(&made, &issued.chain_pem, "localhost", SystemTime::now()).unwrap();
    }

    #[test]
    fn only_who_trusts_the_nodes_ca_believes_a_node_its_name() {
        let authority = Authority::create("test", OffsetDateTime::now_utc()).unwrap();
        let nodes = authority.node_serving().unwrap();
        let copy = Authority::load(authority.certificate_pem().into(), authority.key_pem().into()).unwrap();
        let elsewhere = copy.node_serving().unwrap();
        let stolen = ["kubernetes.default.svc".to_owned()];
        let csr = csr(CertificateParams::default());
        let chain = nodes.sign(&csr, &Subject::node("w1"), &stolen, Usage::Server, year_from_now()).unwrap();
        let now = SystemTime::now();
        // Every master derives the same CA.
        verify(&elsewhere, &chain, &stolen[0], now).unwrap();
        let refused = verify(&authority, &chain, &stolen[0], now).unwrap_err();
        assert_eq!(refused, CertificateError::UnknownIssuer.into());
        let other = Authority::create("other", OffsetDateTime::now_utc()).unwrap().node_serving().unwrap();
        verify(&other, &chain, &stolen[0], now).unwrap_err();
    }

    #[test]
    fn certificates_made_by_a_clock_a_year_ahead_are_good_then() {
        let made = SystemTime::now();
        let authority = Authority::create("test", made.into()).unwrap();
        let old = authority.issue(&Subject::new("a", "b"), &["m1".into()], Usage::Server, year_from_now());
        let later = made + YEAR + std::time::Duration::from_secs(24 * 3600);
        verify(&authority, &old.unwrap().chain_pem, "m1", later).unwrap_err();
        let validity = Validity::new(later, YEAR);
        let new = authority.issue(&Subject::new("a", "b"), &["m1".into()], Usage::Server, validity).unwrap();
        verify(&authority, &new.chain_pem, "m1", later).unwrap();
    }

    #[test]
    fn a_short_life_is_not_backdated_away() {
        let (now, lifetime) = (SystemTime::now(), std::time::Duration::from_secs(30));
        let authority = Authority::create("test", now.into()).unwrap();
        let validity = Validity::new(now, lifetime);
        let issued = authority.issue(&Subject::new("a", "b"), &[], Usage::Client, validity).unwrap();
        let info = CertificateInfo::from_pem(&issued.chain_pem).unwrap();
        assert!(!info.is_expired(now + std::time::Duration::from_secs(28)));
        assert!(info.renew_at() > now + std::time::Duration::from_secs(15));
        assert!(info.renew_at() < now + std::time::Duration::from_secs(21));
    }
}
