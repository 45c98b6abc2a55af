//! Subject and validity of a certificate. `tls.rs` reads them in handshakes; `master/node` and
//! `worker/node` use them to decide when to renew theirs.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::NODES_ORGANIZATION;
use crate::network::PeerIdentity;
use crate::tls::Error;

/// Subject and validity of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Common name and organizations of the subject.
    pub identity: PeerIdentity,
    /// Start of the validity.
    pub not_before: SystemTime,
    /// End of the validity.
    pub not_after: SystemTime,
}

impl CertificateInfo {
    /// Reads a DER certificate.
    ///
    /// # Errors
    /// Fails if it is no X.509 certificate.
    pub fn from_der(certificate: &[u8]) -> Result<Self, Error> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|error| Error::Pem { what: "certificate", reason: error.to_string() })?;
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().ok().map(ToOwned::to_owned)
        };
        let subject = parsed.subject();
        Ok(Self {
            identity: PeerIdentity {
                common_name: subject.iter_common_name().find_map(text).unwrap_or_default(),
                organizations: subject.iter_organization().filter_map(text).collect(),
            },
            not_before: since_epoch(parsed.validity().not_before.timestamp()),
            not_after: since_epoch(parsed.validity().not_after.timestamp()),
        })
    }

    /// Reads the first certificate of a PEM chain.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn from_pem(chain: &str) -> Result<Self, Error> {
        let first = CertificateDer::from_pem_slice(chain.as_bytes())
            .map_err(|error| Error::Pem { what: "certificate", reason: error.to_string() })?;
        Self::from_der(&first)
    }

    /// Returns the length of the validity.
    pub fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// Returns when the certificate should be renewed: after two thirds of its lifetime.
    pub fn renew_at(&self) -> SystemTime {
        self.not_before + self.lifetime() / 3 * 2
    }

    /// Returns whether the subject is a node and in no other group.
    pub fn is_only_a_node(&self) -> bool {
        matches!(&self.identity.organizations[..], [only] if only == NODES_ORGANIZATION)
    }

    /// Returns whether the validity has ended.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.not_after
    }
}

/// Converts seconds since 1970 to a time; earlier times become 1970.
fn since_epoch(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}
