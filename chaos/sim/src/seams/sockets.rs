//! The sockets of one machine, as its operating system keeps them: they take
//! connections and bytes while the process that owns them stands still, until their
//! buffers are full. Runs as turmoil's host of the machine; `network.rs` asks from
//! within the process (`process.rs`), which is not one of turmoil's hosts.

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

/// Connections that wait to be accepted.
const BACKLOG: usize = 256;
/// What a socket holds in each direction.
const BUFFER_BYTES: usize = 256 * 1024;
/// Requests of a process under way.
const REQUESTS: usize = 64;

/// A connection: its bytes, who is at the other end, and the address at this end.
pub struct Socket {
    /// What is sent and received.
    pub stream: BoxedStream,
    /// The other end.
    pub remote: SocketAddr,
}

/// What a process asks for.
pub enum Request {
    /// A connection to somebody.
    Connect {
        /// Whom.
        address: String,
        /// Where the answer goes; who waits no more has dropped the other end.
        reply: oneshot::Sender<io::Result<Socket>>,
    },
    /// The connections to this address, until the receiver is dropped.
    Listen {
        /// Of this machine.
        address: String,
        /// Where the answer goes.
        reply: oneshot::Sender<io::Result<Listening>>,
    },
}

/// A listening socket.
pub struct Listening {
    /// Connections in the order they came.
    pub accepted: mpsc::Receiver<Socket>,
    /// Where it listens.
    pub local: SocketAddr,
}

/// The sockets of a machine; new ones after each start of it.
pub struct Sockets {
    links: Links,
    requests: Mutex<mpsc::Sender<Request>>,
}

impl Sockets {
    /// None yet.
    pub fn new(links: Links) -> Self {
        let (nobody, _) = mpsc::channel(REQUESTS);
        Self { links, requests: Mutex::new(nobody) }
    }

    /// How the process asks; where the machine does not run, nobody hears.
    pub fn requests(&self) -> mpsc::Sender<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves the process that starts now, until turmoil takes the machine away.
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
    // Dropping what nobody takes closes the connection.
    let _ = reply.send(socket);
}

/// Carries bytes between a connection and its socket, as long as both are there.
fn carry(mut stream: Shaped, remote: SocketAddr) -> Socket {
    let (near, mut far): (DuplexStream, DuplexStream) = duplex(BUFFER_BYTES);
    tokio::spawn(async move {
        // However it ends, both are dropped then.
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
