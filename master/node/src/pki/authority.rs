//! The cluster CA: signs the certificates of masters, nodes, components and
//! operators. Who a certificate names is decided here, never by a request.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use super::Error;

/// Certificates are valid a little before now, because clocks differ.
const BACKDATE: Duration = Duration::hours(1);
/// The CA outlives the machines.
const CA_DAYS: i64 = 3650;
/// Leaves last a year, as in Kubernetes.
const LEAF_DAYS: i64 = 365;

/// Whom a certificate names: CN is the user, O the groups.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The common name.
    pub user: String,
    /// The organizations.
    pub groups: Vec<String>,
}

impl Subject {
    /// A subject of one group.
    pub fn new(user: impl Into<String>, group: &str) -> Self {
        Self { user: user.into(), groups: vec![group.to_owned()] }
    }

    /// `system:node:NAME` in `system:nodes`.
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
    /// A new self-signed CA; `cluster_id` makes its name unique.
    pub fn create(cluster_id: &str, now: OffsetDateTime) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&Subject { user: format!("ephor-ca-{cluster_id}"), groups: vec![] });
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        params.not_before = now - BACKDATE;
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

    /// Makes a key and a certificate for it. Names may be DNS names or addresses.
    pub fn issue(&self, subject: &Subject, names: &[String], now: OffsetDateTime) -> Result<Issued, Error> {
        let key = KeyPair::generate()?;
        let params = leaf(subject, names, now)?;
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
        now: OffsetDateTime,
    ) -> Result<String, Error> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        let certificate = leaf(subject, names, now)?.signed_by(&request.public_key, &self.issuer)?;
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

fn leaf(subject: &Subject, names: &[String], now: OffsetDateTime) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(subject);
    params.subject_alt_names = names.iter().map(|n| alt_name(n)).collect::<Result<_, _>>()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = now - BACKDATE;
    params.not_after = now + Duration::days(LEAF_DAYS);
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
    use super::*;

    #[test]
    fn a_request_cannot_choose_its_own_subject() {
        let now = OffsetDateTime::now_utc();
        let authority = Authority::create("test", now).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut wanted = CertificateParams::default();
        wanted.distinguished_name = name(&Subject::new("admin", "system:masters"));
        let csr = wanted.serialize_request(&key).unwrap().pem().unwrap();
        let chain = authority.sign(&csr, &Subject::node("w1"), &["10.0.0.1".into()], now).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(chain.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        assert_eq!(certificate.subject().to_string(), "O=system:nodes, CN=system:node:w1");
    }

    #[test]
    fn a_ca_signs_the_same_after_it_was_read_back() {
        let now = OffsetDateTime::now_utc();
        let made = Authority::create("test", now).unwrap();
        let read = Authority::load(made.certificate_pem().into(), made.key_pem().into()).unwrap();
        let issued = read.issue(&Subject::new("a", "b"), &["localhost".into()], now).unwrap();
        let (_, ca) = x509_parser::pem::parse_x509_pem(made.certificate_pem().as_bytes()).unwrap();
        let (_, leaf) = x509_parser::pem::parse_x509_pem(issued.chain_pem.as_bytes()).unwrap();
        let ca = ca.parse_x509().unwrap();
        assert_eq!(leaf.parse_x509().unwrap().issuer(), ca.subject());
    }
}
