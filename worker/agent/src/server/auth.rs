//! Decides which clients may use the node's server: the masters' API servers and operators, identified by
//! their client certificates.

use proto_env::KUBELET_CLIENTS_ORGANIZATION;
use rustls::ServerConnection;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Groups whose members may use the server: the API servers' group, and the operators'.
const GROUPS: [&str; 2] = [KUBELET_CLIENTS_ORGANIZATION, "system:masters"];

/// Returns whether the peer's certificate (already verified against the cluster CA) names one of the allowed
/// groups.
pub fn allowed(connection: &ServerConnection) -> bool {
    let Some(certificate) = connection.peer_certificates().and_then(|chain| chain.first()) else {
        return false;
    };
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    parsed.subject().iter_organization().filter_map(|name| name.as_str().ok()).any(is_allowed_group)
}

fn is_allowed_group(group: &str) -> bool {
    GROUPS.contains(&group)
}

#[cfg(test)]
mod tests {
    use super::is_allowed_group;

    #[test]
    fn api_servers_and_operators_may_use_the_server_and_nobody_else() {
        assert!(is_allowed_group("system:kube-apiserver-kubelet"));
        assert!(is_allowed_group("system:masters"));
        for other in ["system:nodes", "system:ephor:masters", "system:authenticated", ""] {
            assert!(!is_allowed_group(other), "{other}");
        }
    }
}
