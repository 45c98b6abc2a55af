//! Who may use the node's server: the masters, known by their client certificate.

use rustls::ServerConnection;
use x509_parser::prelude::{FromDer as _, X509Certificate};

const GROUPS: [&str; 2] = ["system:masters", "system:ephor:masters"];
const USERS: [&str; 2] = ["kube-apiserver-kubelet-client", "system:ephor:master"];

/// Whether the peer's certificate (already verified against the cluster CA) belongs to the masters.
pub fn allowed(connection: &ServerConnection) -> bool {
    let Some(certificate) = connection.peer_certificates().and_then(|chain| chain.first()) else {
        return false;
    };
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    let subject = parsed.subject();
    let user = subject.iter_common_name().any(|name| name.as_str().is_ok_and(|name| USERS.contains(&name)));
    user || subject.iter_organization().any(|name| name.as_str().is_ok_and(|name| GROUPS.contains(&name)))
}
