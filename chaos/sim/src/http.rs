//! Connections of the simulation's clients to a master: over the simulated network, as the administrator by
//! default. `workload.rs`, `watcher.rs` and `worker.rs` use the client.

use std::net::IpAddr;

pub use chaos_oracle::http::Failure;
use chaos_oracle::http::{self, Connect};
use proto_env::{BoxedStream, PeerIdentity};

use crate::machine::API_PORT;
use crate::seams::links::Links;
use crate::seams::network::connect_as;

/// A client of one master.
pub type Client = http::Client<Master>;

/// A master's API, and who asks it.
pub struct Master {
    address: IpAddr,
    links: Links,
    identity: PeerIdentity,
}

impl Connect for Master {
    type Stream = BoxedStream;

    async fn connect(&self) -> Option<Self::Stream> {
        let address = format!("{}:{API_PORT}", self.address);
        Some(connect_as(&address, Some(&self.identity), &self.links).await.ok()?.stream)
    }
}

/// Creates a client of the master at `address` that identifies itself as the administrator.
pub fn client(address: IpAddr, links: Links) -> Client {
    let identity = PeerIdentity {
        common_name: "simulation".to_owned(),
        organizations: vec!["system:masters".to_owned()],
    };
    client_as(address, links, identity)
}

/// Creates a client of the master at `address` that identifies itself as `identity`.
pub fn client_as(address: IpAddr, links: Links, identity: PeerIdentity) -> Client {
    Client::to(Master { address, links, identity })
}
