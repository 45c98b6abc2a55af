//! Client certificates: CN is the user, O the groups. The TLS handshake has verified the chain; the listener
//! calls this once a connection.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::FromDer;

use crate::context::UserInfo;

/// The user a verified certificate names; `None` without a common name.
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
