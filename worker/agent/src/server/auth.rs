//! Decides which clients may use the node's server, and until when: the masters' API servers and operators,
//! identified by their client certificates.

use std::time::SystemTime;

use http::StatusCode;
use proto_env::{CertificateInfo, KUBELET_CLIENTS_ORGANIZATION};
use rustls::ServerConnection;

/// Groups whose members may use the server: the API servers' group, and the operators'.
const GROUPS: [&str; 2] = [KUBELET_CLIENTS_ORGANIZATION, "system:masters"];

/// The client of a connection, as the certificate says that it showed in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// A client without a certificate that names an allowed group.
    Stranger,
    /// A member of an allowed group, until its certificate, or the first of its chain, ends.
    Allowed {
        /// The end of the validity.
        until: SystemTime,
    },
}

impl Client {
    /// Returns the client of a connection; its certificate has already been verified against the cluster's CA.
    pub fn of(connection: &ServerConnection) -> Self {
        let chain = connection.peer_certificates().unwrap_or_default();
        let read = chain.iter().map(|certificate| CertificateInfo::from_der(certificate));
        let Ok(chain) = read.collect::<Result<Vec<_>, _>>() else { return Self::Stranger };
        let allowed =
            chain.first().is_some_and(|client| GROUPS.iter().any(|g| client.identity.in_organization(g)));
        match chain.iter().map(|certificate| certificate.not_after).min() {
            Some(until) if allowed => Self::Allowed { until },
            _ => Self::Stranger,
        }
    }

    /// Returns when the connection has to end; `None` for one that may do nothing anyway.
    pub fn until(self) -> Option<SystemTime> {
        match self {
            Self::Stranger => None,
            Self::Allowed { until } => Some(until),
        }
    }

    /// Returns code and text for a request that is refused at `now`; `None` where it is not.
    pub fn refused(self, now: SystemTime) -> Option<(StatusCode, &'static str)> {
        match self {
            Self::Stranger => Some((StatusCode::FORBIDDEN, "Forbidden")),
            Self::Allowed { until } if now > until => Some((StatusCode::UNAUTHORIZED, "Unauthorized")),
            Self::Allowed { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_request_is_judged_by_the_time_it_comes_at() {
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let client = Client::Allowed { until };
        assert_eq!(client.refused(until - Duration::from_secs(1)), None);
        let late = client.refused(until + Duration::from_secs(1));
        assert_eq!(late, Some((StatusCode::UNAUTHORIZED, "Unauthorized")));
        assert_eq!(Client::Stranger.refused(until), Some((StatusCode::FORBIDDEN, "Forbidden")));
    }
}
