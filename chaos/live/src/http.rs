//! Connections of the experiment's clients to the API of a live master: over TLS, as the operator. `workload`,
//! `watcher`, `members` and `run` use the client.

use std::net::SocketAddr;

pub use chaos_oracle::http::Failure;
use chaos_oracle::http::{self, Connect};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::access::Access;

/// A client of one master.
pub type Client = http::Client<Master>;

/// A master's API.
pub struct Master {
    access: Access,
    address: SocketAddr,
}

impl Connect for Master {
    type Stream = TlsStream<TcpStream>;

    async fn connect(&self) -> Option<Self::Stream> {
        let stream = TcpStream::connect(self.address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let name = ServerName::try_from("kubernetes").ok()?;
        self.access.api().connect(name, stream).await.ok()
    }
}

/// Creates a client of the API at `address`.
pub fn client(access: &Access, address: SocketAddr) -> Client {
    Client::to(Master { access: access.clone(), address })
}
