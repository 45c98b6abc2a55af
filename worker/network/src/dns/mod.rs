//! The cluster's DNS server, which runs on every node: `zone` answers for the cluster's domain from the
//! node's copy of the state (pure), `forward` asks the host's resolvers for all other names, `server` speaks
//! the protocol through `hickory-server`. Started by `network.rs`.

mod forward;
mod server;
mod zone;

pub use forward::Upstreams;
pub use server::run;
pub use zone::{Answer, Zone, ZoneResult};

/// Why DNS could not be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listening address could not be bound.
    #[error("DNS cannot listen on {address}: {source}")]
    Listen {
        /// Address and port.
        address: std::net::SocketAddr,
        /// The underlying error.
        source: std::io::Error,
    },
    /// The address could not be added to the loopback interface.
    #[error(transparent)]
    Netlink(#[from] crate::netlink::Error),
    /// The configured cluster domain is not a valid domain name.
    #[error("cluster domain {domain:?}: {reason}")]
    Domain {
        /// The configured value.
        domain: String,
        /// Why the value is invalid.
        reason: String,
    },
}
