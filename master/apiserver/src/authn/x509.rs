//! Client certificates: CN is the user, O the groups. The listener verifies the chain once per connection and
//! then calls this file; `mod.rs` compares the chain's expiry with the clock at every request.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::FromDer;

use crate::context::UserInfo;

/// Returns the user a verified certificate names; `None` without a common name.
pub fn user(certificate: &CertificateDer<'_>) -> Option<UserInfo> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let groups: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    Some(UserInfo::authenticated(name, &groups))
}

/// Returns the earliest expiry in a chain; `None` where a certificate cannot be parsed.
pub fn valid_until(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    let end = |certificate: &CertificateDer<'_>| {
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    };
    let ends: Option<Vec<SystemTime>> = chain.iter().map(end).collect();
    ends?.into_iter().min()
}
