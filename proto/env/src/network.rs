//! Connections between nodes. What crosses them is authenticated: a connection
//! comes with the identity the other side proved. Production does TLS inside
//! ([`crate::TlsNetwork`]); the simulation connects without and says who it is.

use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use crate::tls::{Error as TlsError, TlsMaterial};

/// A byte stream in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A stream whose kind is known to the network alone.
pub type BoxedStream = Box<dyn Stream>;

/// Who the other side proved to be: the subject of its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerIdentity {
    /// CN: a master's or node's name, or a user.
    pub common_name: String,
    /// O: groups, such as [`crate::MASTERS_ORGANIZATION`].
    pub organizations: Vec<String>,
}

impl PeerIdentity {
    /// Whether the peer is in the group.
    pub fn in_organization(&self, organization: &str) -> bool {
        self.organizations.iter().any(|known| known == organization)
    }
}

/// Why a connection is made, which decides how both sides prove themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Between members of one cluster: both sides show certificates of its CA.
    Peer,
    /// A node that joins: it shows nothing yet and trusts the CA whose DER has
    /// this SHA-256 (from the join token). The server must send its CA along.
    Join {
        /// SHA-256 of the CA certificate in DER.
        ca_sha256: [u8; 32],
    },
    /// A question to the API port of a master: it shows a certificate of the
    /// cluster's CA, the client none.
    Api,
}

/// An established connection.
pub struct Connection {
    /// The bytes.
    pub stream: BoxedStream,
    /// Who is at the other end; `None` for a client without a valid certificate.
    pub peer: Option<PeerIdentity>,
    /// The node at the other end, where all that is wrong with its certificate is that
    /// it has expired: it may ask for a new one, and for nothing else.
    pub expired_peer: Option<PeerIdentity>,
    /// Where the other end is.
    pub remote: SocketAddr,
}

/// Makes and accepts connections.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Proves from now on to be whom the certificate names. Before that only
    /// [`Purpose::Join`] can connect, and nothing can listen.
    fn set_material(&self, material: &TlsMaterial) -> Result<(), TlsError>;

    /// Connects to `HOST:PORT` and authenticates. Callers put a deadline on it.
    async fn connect(&self, address: &str, purpose: &Purpose) -> io::Result<Connection>;

    /// Listens on `HOST:PORT` (port 0 takes a free one).
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>>;

    /// Listens on the API's address, where clients are of all kinds.
    async fn listen_api(&self, address: SocketAddr) -> io::Result<ApiListener>;
}

/// Where the clients of an API server connect.
pub enum ApiListener {
    /// Bare TCP: the API server does TLS itself, with its own certificate, HTTP
    /// protocols and optional client certificates.
    Tcp(TcpListener),
    /// Connections that have authenticated already: the simulation.
    Authenticated(Box<dyn Listener>),
}

/// Accepts connections that have authenticated, or that show no certificate.
#[async_trait]
pub trait Listener: Send + 'static {
    /// The next connection. An error means the listener has ended; a client that
    /// fails its handshake is logged and skipped.
    async fn accept(&mut self) -> io::Result<Connection>;

    /// The address listened on.
    fn local_address(&self) -> SocketAddr;
}
