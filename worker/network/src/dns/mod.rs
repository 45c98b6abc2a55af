//! The cluster's DNS server, one on every node: `zone` answers for the cluster's domain from the node's
//! own copy of the state (pure), `forward` asks the host's resolvers for everything else, `server` speaks
//! the protocol through `hickory-server`. Started by `network.rs`.

mod forward;
mod server;
mod zone;

pub use forward::Upstreams;
pub use server::run;
pub use zone::{Answer, Outcome, Zone};

/// DNS could not be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address could not be bound.
    #[error("DNS cannot listen on {address}: {source}")]
    Listen {
        /// Address and port.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The address could not be given to the loopback interface.
    #[error(transparent)]
    Netlink(#[from] crate::netlink::Error),
    /// The cluster domain is no domain name.
    #[error("cluster domain {domain:?}: {reason}")]
    Domain {
        /// What was configured.
        domain: String,
        /// Why it is refused.
        reason: String,
    },
}
