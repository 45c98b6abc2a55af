//! Authenticated connections between nodes: each connection comes with the identity that the other side
//! proved. In production TLS does that ([`crate::TlsNetwork`]); the simulation connects without TLS and
//! states its identity.

use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use crate::tls::{Error as TlsError, TlsMaterial};

/// A byte stream in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A stream whose concrete type only the network knows.
pub type BoxedStream = Box<dyn Stream>;

/// The authenticated identity of the other side: the subject of its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerIdentity {
    /// The common name (CN): the name of a master, a node or a user.
    pub common_name: String,
    /// The organizations (O): groups, such as [`crate::MASTERS_ORGANIZATION`].
    pub organizations: Vec<String>,
}

impl PeerIdentity {
    /// Returns whether the peer is in the group.
    pub fn in_organization(&self, organization: &str) -> bool {
        self.organizations.iter().any(|known| known == organization)
    }
}

/// The purpose of a connection, which decides how both sides authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Between members of one cluster: both sides show certificates of the cluster's CA.
    Peer,
    /// From a node that joins: it shows no certificate and trusts the CA whose DER has this SHA-256 (from
    /// the join token). The server must send its CA along.
    Join {
        /// SHA-256 of the CA certificate in DER.
        ca_sha256: [u8; 32],
    },
    /// To the API port of a master: the master shows a certificate of the cluster's CA, the client shows
    /// none.
    Api,
}

/// An established connection.
pub struct Connection {
    /// The byte stream.
    pub stream: BoxedStream,
    /// The authenticated identity of the other side; `None` for a client without a valid certificate.
    pub peer: Option<PeerIdentity>,
    /// The node at the other side if its certificate is valid except that it has expired: it may only ask
    /// for a new one.
    pub expired_peer: Option<PeerIdentity>,
    /// The address of the other side.
    pub remote: SocketAddr,
}

/// Makes and accepts connections between nodes.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Sets the certificates to authenticate with from now on. Before that only [`Purpose::Join`] can
    /// connect, and nothing can listen.
    fn set_material(&self, material: &TlsMaterial) -> Result<(), TlsError>;

    /// Connects to `HOST:PORT` and authenticates. The caller sets a deadline.
    async fn connect(&self, address: &str, purpose: &Purpose) -> io::Result<Connection>;

    /// Listens on `HOST:PORT` (port 0 takes a free one).
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>>;

    /// Listens on the API's address, to which clients of all kinds connect.
    async fn listen_api(&self, address: SocketAddr) -> io::Result<ApiListener>;
}

/// The listener of an API server.
pub enum ApiListener {
    /// Plain TCP: the API server does TLS itself, with its own certificate, HTTP protocols and optional
    /// client certificates.
    Tcp(TcpListener),
    /// Connections that are authenticated already, as in the simulation.
    Authenticated(Box<dyn Listener>),
}

/// Accepts connections that are authenticated or that show no certificate.
#[async_trait]
pub trait Listener: Send + 'static {
    /// Accepts the next connection. An error means that the listener has ended; a client that fails its
    /// handshake is logged and skipped.
    async fn accept(&mut self) -> io::Result<Connection>;

    /// Returns the address of the listener.
    fn local_address(&self) -> SocketAddr;
}
