//! Simulated network of one machine: turmoil's TCP, on which both sides first send their identity. A process
//! of a machine asks its operating system for connections (`sockets.rs`); software on a turmoil host opens
//! them itself. Identities are trusted: what TLS proves in production is taken from the certificate that the
//! master was given.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use proto_env::{ApiListener, Connection, Listener, Network, PeerIdentity, Purpose, TlsError, TlsMaterial};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use turmoil::net::TcpStream;

use super::links::Links;
use super::shaped::Shaped;
use super::sockets::{Listening, Request, Socket};

/// Maximum time until the other side has sent its identity.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const BACKLOG: usize = 256;
/// Time after which a lost segment that opens a connection is sent again; twice that the second time (Linux,
/// RFC 6298).
const SYN_RESEND: Duration = Duration::from_secs(1);
/// Time until a kernel has answered that nobody listens on a port.
const REFUSAL: Duration = Duration::from_millis(1);

type Shared = Arc<RwLock<Option<PeerIdentity>>>;

/// Where connections are opened.
enum Source {
    /// On a turmoil host.
    Host(Links),
    /// In the operating system of the machine that the process runs on.
    Machine(mpsc::Sender<Request>),
}

/// Network of one machine; created anew at each start.
pub struct SimNetwork {
    identity: Shared,
    source: Source,
}

impl SimNetwork {
    /// Creates the network of a process that has no certificate yet.
    pub fn of_process(requests: mpsc::Sender<Request>) -> Self {
        Self { identity: Shared::default(), source: Source::Machine(requests) }
    }

    /// Creates the network of a turmoil host that identifies itself as `identity`.
    pub fn of_host(links: Links, identity: PeerIdentity) -> Self {
        Self { identity: Arc::new(RwLock::new(Some(identity))), source: Source::Host(links) }
    }

    async fn socket(&self, address: &str) -> io::Result<Socket> {
        match &self.source {
            Source::Host(links) => socket(address, links).await,
            Source::Machine(requests) => {
                let (reply, answer) = oneshot::channel();
                ask(requests, Request::Connect { address: address.to_owned(), reply }, answer).await
            }
        }
    }

    async fn connect_as(&self, address: &str, identity: Option<&PeerIdentity>) -> io::Result<Connection> {
        introduce(self.socket(address).await?, identity).await
    }
}

async fn ask<T>(
    requests: &mpsc::Sender<Request>,
    request: Request,
    answer: oneshot::Receiver<io::Result<T>>,
) -> io::Result<T> {
    requests.send(request).await.map_err(|_| io::ErrorKind::NetworkDown)?;
    answer.await.map_err(|_| io::ErrorKind::NetworkDown)?
}

/// Opens a connection from a turmoil host.
async fn socket(address: &str, links: &Links) -> io::Result<Socket> {
    let stream = dial(address, links).await?;
    let (remote, local) = (stream.peer_addr()?, stream.local_addr()?);
    let stream = Box::new(Shaped::new(stream, links.clone(), (remote.ip(), local.ip())));
    Ok(Socket { stream, remote })
}

/// Sends the caller's identity on a new connection and receives that of the other side.
async fn introduce(socket: Socket, identity: Option<&PeerIdentity>) -> io::Result<Connection> {
    let Socket { mut stream, remote } = socket;
    say(&mut stream, identity).await?;
    let peer = hear(&mut stream).await?;
    Ok(Connection { stream, peer, expired_peer: None, remote })
}

fn current(identity: &Shared) -> Option<PeerIdentity> {
    identity.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Connects from a turmoil host as `identity`.
pub async fn connect_as(
    address: &str,
    identity: Option<&PeerIdentity>,
    links: &Links,
) -> io::Result<Connection> {
    introduce(socket(address, links).await?, identity).await
}

/// Connects as TCP does. Where a cut drops the segment that opens a connection, turmoil reports at once that
/// nobody listens; a real machine hears nothing and sends the segment again.
pub async fn dial(address: &str, links: &Links) -> io::Result<TcpStream> {
    let machine = address.parse::<SocketAddr>().map(|address| address.ip());
    let mut resend = SYN_RESEND;
    loop {
        if machine.as_ref().is_ok_and(|machine| links.refuses(*machine)) {
            tokio::time::sleep(REFUSAL).await;
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, address.to_owned()));
        }
        let began = Instant::now();
        match TcpStream::connect(address).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() == began => {
                tokio::time::sleep(resend).await;
                resend *= 2;
            }
            result => return result,
        }
    }
}

/// Sends this side's identity: a length, then common name and organizations, one a line.
async fn say(stream: &mut (impl AsyncWrite + Unpin), identity: Option<&PeerIdentity>) -> io::Result<()> {
    let text = identity.map_or(String::new(), |identity| {
        let names = std::iter::once(&identity.common_name).chain(&identity.organizations);
        names.map(String::as_str).collect::<Vec<_>>().join("\n")
    });
    let length = u16::try_from(text.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    stream.write_all(&bytes).await
}

async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<PeerIdentity>> {
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    let text = String::from_utf8(bytes).map_err(io::Error::other)?;
    if text.is_empty() {
        return Ok(None);
    }
    let mut names = text.split('\n').map(str::to_owned);
    let common_name = names.next().unwrap_or_default();
    Ok(Some(PeerIdentity { common_name, organizations: names.collect() }))
}

#[async_trait]
impl Network for SimNetwork {
    fn set_material(&self, material: &TlsMaterial) -> Result<(), TlsError> {
        let bad = |reason: String| TlsError::Pem { what: "certificate", reason };
        let certificate = CertificateDer::from_pem_slice(material.certificate_pem.as_bytes())
            .map_err(|error| bad(error.to_string()))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&certificate).map_err(|error| bad(error.to_string()))?;
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().ok().map(ToOwned::to_owned)
        };
        let subject = parsed.subject();
        let identity = PeerIdentity {
            common_name: subject.iter_common_name().find_map(text).unwrap_or_default(),
            organizations: subject.iter_organization().filter_map(text).collect(),
        };
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = Some(identity);
        Ok(())
    }

    async fn connect(&self, address: &str, purpose: &Purpose) -> io::Result<Connection> {
        match purpose {
            Purpose::Peer => {
                let identity = current(&self.identity);
                self.connect_as(address, Some(&identity.ok_or(io::ErrorKind::NotConnected)?)).await
            }
            Purpose::Join { .. } | Purpose::Api => self.connect_as(address, None).await,
        }
    }

    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        // Only processes listen; turmoil hosts do not.
        let Source::Machine(requests) = &self.source else { return Err(io::ErrorKind::Unsupported.into()) };
        let (reply, answer) = oneshot::channel();
        let request = Request::Listen { address: address.to_owned(), reply };
        let Listening { accepted, local } = ask(requests, request, answer).await?;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(accept_loop(accepted, self.identity.clone(), sender));
        Ok(Box::new(SimListener { receiver, local }))
    }

    async fn listen_api(&self, address: SocketAddr) -> io::Result<ApiListener> {
        Ok(ApiListener::Authenticated(self.listen(&address.to_string()).await?))
    }
}

struct SimListener {
    receiver: mpsc::Receiver<Connection>,
    local: SocketAddr,
}

#[async_trait]
impl Listener for SimListener {
    async fn accept(&mut self) -> io::Result<Connection> {
        self.receiver.recv().await.ok_or_else(|| io::Error::other("the listener has ended"))
    }

    fn local_address(&self) -> SocketAddr {
        self.local
    }
}

/// Accepts connections whose client sends its identity in time.
async fn accept_loop(
    mut accepted: mpsc::Receiver<Socket>,
    identity: Shared,
    sender: mpsc::Sender<Connection>,
) {
    loop {
        let next = tokio::select! {
            biased;
            () = sender.closed() => return,
            next = accepted.recv() => next,
        };
        let Some(Socket { mut stream, remote }) = next else { return };
        let (identity, sender) = (current(&identity), sender.clone());
        tokio::spawn(async move {
            let handshake = async {
                let peer = hear(&mut stream).await?;
                say(&mut stream, identity.as_ref()).await?;
                Ok::<_, io::Error>(peer)
            };
            if let Ok(Ok(peer)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                // If the listener has gone, the connection is dropped.
                let _ = sender.send(Connection { stream, peer, expired_peer: None, remote }).await;
            }
        });
    }
}
