//! Sockets of one machine, as its operating system keeps them: they accept connections and bytes while the
//! process that owns them is paused, until their buffers are full. Runs on the machine's turmoil host;
//! `network.rs` sends requests from the process (`process.rs`), which is not on a turmoil host.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use proto_env::BoxedStream;
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::sync::{mpsc, oneshot};
use turmoil::net::TcpListener;

use super::links::Links;
use super::network::dial;
use super::shaped::Shaped;

/// Maximum number of connections that wait to be accepted.
const BACKLOG: usize = 256;
/// Bytes that a socket buffers in each direction.
const BUFFER_BYTES: usize = 256 * 1024;
/// Maximum number of requests of a process under way.
const REQUESTS: usize = 64;

/// A connection.
pub struct Socket {
    /// Bytes sent and received.
    pub stream: BoxedStream,
    /// Address of the other end.
    pub remote: SocketAddr,
}

/// Request of a process to its operating system.
pub enum Request {
    /// Opens a connection.
    Connect {
        /// Address to connect to.
        address: String,
        /// Channel for the answer; the process has dropped the receiver if it no longer waits.
        reply: oneshot::Sender<io::Result<Socket>>,
    },
    /// Accepts connections to an address until the receiver is dropped.
    Listen {
        /// Address of this machine to listen on.
        address: String,
        /// Channel for the answer.
        reply: oneshot::Sender<io::Result<Listening>>,
    },
}

/// A listening socket.
pub struct Listening {
    /// Accepted connections in the order they came.
    pub accepted: mpsc::Receiver<Socket>,
    /// Address of the listener.
    pub local: SocketAddr,
}

/// Sockets of a machine; recreated at each start of the machine.
pub struct Sockets {
    links: Links,
    requests: Mutex<mpsc::Sender<Request>>,
}

impl Sockets {
    /// Creates an empty set of sockets.
    pub fn new(links: Links) -> Self {
        let (nobody, _) = mpsc::channel(REQUESTS);
        Self { links, requests: Mutex::new(nobody) }
    }

    /// Returns the channel for a process's requests; it is closed while the machine does not run.
    pub fn requests(&self) -> mpsc::Sender<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves the process that starts now, until turmoil stops the machine.
    pub fn serve(&self) -> impl Future<Output = ()> + use<> {
        let (sender, mut requests) = mpsc::channel(REQUESTS);
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner) = sender;
        let links = self.links.clone();
        async move {
            while let Some(request) = requests.recv().await {
                match request {
                    Request::Connect { address, reply } => {
                        tokio::spawn(connect(address, links.clone(), reply));
                    }
                    Request::Listen { address, reply } => {
                        tokio::spawn(listen(address, links.clone(), reply));
                    }
                }
            }
        }
    }
}

async fn connect(address: String, links: Links, mut reply: oneshot::Sender<io::Result<Socket>>) {
    let dialed = tokio::select! {
        biased;
        () = reply.closed() => return,
        dialed = dial(&address, &links) => dialed,
    };
    let socket = dialed.and_then(|stream| {
        let (remote, local) = (stream.peer_addr()?, stream.local_addr()?);
        Ok(carry(Shaped::new(stream, links, (remote.ip(), local.ip())), remote))
    });
    // If nobody takes the socket, dropping it closes the connection.
    let _ = reply.send(socket);
}

/// Copies bytes between a connection and its socket as long as both are open.
fn carry(mut stream: Shaped, remote: SocketAddr) -> Socket {
    let (near, mut far): (DuplexStream, DuplexStream) = duplex(BUFFER_BYTES);
    tokio::spawn(async move {
        // Both are dropped at the end, whether or not copying failed.
        let _ = copy_bidirectional(&mut stream, &mut far).await;
    });
    Socket { stream: Box::new(near), remote }
}

async fn listen(address: String, links: Links, reply: oneshot::Sender<io::Result<Listening>>) {
    let bound = match TcpListener::bind(&address).await {
        Ok(listener) => listener.local_addr().map(|local| (listener, local)),
        Err(error) => Err(error),
    };
    let (sender, accepted) = mpsc::channel(BACKLOG);
    let listener = match bound {
        Ok((listener, local)) => match reply.send(Ok(Listening { accepted, local })) {
            Ok(()) => listener,
            Err(_) => return,
        },
        Err(error) => {
            let _ = reply.send(Err(error));
            return;
        }
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = sender.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, remote)) = accepted else { continue };
        let Ok(local) = stream.local_addr() else { continue };
        let shaped = Shaped::new(stream, links.clone(), (remote.ip(), local.ip()));
        if sender.send(carry(shaped, remote)).await.is_err() {
            return;
        }
    }
}
