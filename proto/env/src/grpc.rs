//! gRPC over the peer network: a tonic server's connections from a [`Listener`], and a tonic channel that
//! connects through a [`Network`]. Used by `consensus`, `master/node` and `worker/node`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{Stream as FuturesStream, StreamExt};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};

use crate::network::{BoxedStream, Listener, Network, PeerIdentity, Purpose};
use crate::{MASTERS_ORGANIZATION, PriorityRuntime};

/// Least and greatest pause after a failed connection attempt. Every call on an unconnected channel
/// connects, so many waiting callers would retry without end where the other side refuses at once. The
/// pause is short beside an election, so that a returning peer is found soon.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Maximum number of accepted connections that wait for their server.
const CONNECTIONS_AHEAD: usize = 64;

/// An accepted connection, in the form that tonic takes.
pub struct PeerStream {
    stream: BoxedStream,
    info: PeerInfo,
}

/// The client of a connection, in the extensions of every request that came over a [`PeerStream`]
/// (`request.extensions().get::<PeerInfo>()`).
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// The authenticated client; `None` without a valid certificate.
    pub identity: Option<PeerIdentity>,
    /// The node named by an expired certificate that is otherwise valid; `None` without one.
    pub expired_identity: Option<PeerIdentity>,
    /// The client's address.
    pub remote: SocketAddr,
}

impl PeerInfo {
    /// Returns whether the client authenticated as a member of the group.
    pub fn in_organization(&self, organization: &str) -> bool {
        self.identity.as_ref().is_some_and(|identity| identity.in_organization(organization))
    }
}

/// How a channel connects and authenticates the server.
#[derive(Debug, Clone)]
pub struct ChannelOptions {
    /// The purpose of the connection, such as peer or join.
    pub purpose: Purpose,
    /// The group that the server must be in; `None`: any.
    pub organization: Option<&'static str>,
    /// Time limit of connecting, including the TLS handshake.
    pub connect_timeout: Duration,
}

/// Returns the connections of a listener, for `Server::serve_with_incoming_shutdown`.
pub fn incoming(listener: Box<dyn Listener>) -> impl FuturesStream<Item = io::Result<PeerStream>> + Send {
    futures::stream::unfold(Some(listener), |listener| async move {
        let mut listener = listener?;
        match listener.accept().await {
            Ok(connection) => {
                let info = PeerInfo {
                    identity: connection.peer,
                    expired_identity: connection.expired_peer,
                    remote: connection.remote,
                };
                Some((Ok(PeerStream { stream: connection.stream, info }), Some(listener)))
            }
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// The connections accepted by a listener, separated by client.
pub struct Accepted {
    /// Connections of masters.
    pub masters: ReceiverStream<io::Result<PeerStream>>,
    /// Connections of all other clients.
    pub others: ReceiverStream<io::Result<PeerStream>>,
}

/// Accepts connections on `runtime`. Those of masters are for a server on it; all others are for a server
/// on the main runtime, and are closed while it is too busy to take them, so that they never delay a
/// master's.
pub fn accept_apart(listener: Box<dyn Listener>, runtime: &PriorityRuntime) -> Accepted {
    let (masters, of_masters) = mpsc::channel(CONNECTIONS_AHEAD);
    let (others, of_others) = mpsc::channel(CONNECTIONS_AHEAD);
    runtime.spawn(async move {
        let mut connections = std::pin::pin!(incoming(listener));
        loop {
            let connection = tokio::select! {
                biased;
                () = masters.closed() => return,
                connection = connections.next() => connection,
            };
            match connection {
                Some(Ok(stream)) if !stream.info.in_organization(MASTERS_ORGANIZATION) => {
                    if others.try_send(Ok(stream)).is_err() {
                        tracing::warn!("a connection was closed: the server of the peer port is busy");
                    }
                }
                Some(connection) => {
                    if masters.send(connection).await.is_err() {
                        return;
                    }
                }
                None => return,
            }
        }
    });
    Accepted { masters: of_masters.into(), others: of_others.into() }
}

/// Runs the calls of a gRPC service on the main runtime while its server runs on another.
#[derive(Clone)]
pub struct MainRuntimeService<S> {
    inner: S,
    main: Handle,
}

impl<S> MainRuntimeService<S> {
    /// Wraps `service`, so that its calls run on the main runtime of `runtime`.
    pub fn new(service: S, runtime: &PriorityRuntime) -> Self {
        Self { inner: service, main: runtime.main().clone() }
    }
}

impl<S: NamedService> NamedService for MainRuntimeService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> tower::Service<http::Request<Body>> for MainRuntimeService<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let inner = self.inner.clone();
        let call = self.main.spawn(tower::ServiceExt::oneshot(inner, request));
        // If the client goes away the call is aborted, as it would be without the wrapper.
        let call = AbortOnDropHandle::new(call);
        Box::pin(async move {
            call.await.unwrap_or_else(|_| Ok(tonic::Status::internal("the call panicked").into_http()))
        })
    }
}

/// The last failed attempts of a channel to connect.
#[derive(Default)]
struct Attempts {
    failed: Option<Failed>,
}

struct Failed {
    until: Instant,
    pause: Duration,
    kind: io::ErrorKind,
    message: String,
}

impl Attempts {
    /// Returns the error of the last failed attempt while its pause lasts; `None`: connecting may be tried.
    fn refusal(&self) -> Option<io::Error> {
        let failed = self.failed.as_ref().filter(|failed| Instant::now() < failed.until)?;
        Some(io::Error::new(failed.kind, failed.message.clone()))
    }

    fn ended<T>(&mut self, result: &io::Result<T>) {
        let before = self.failed.take();
        self.failed = result.as_ref().err().map(|error| {
            let pause = before.map_or(PAUSE_MIN, |before| (before.pause * 2).min(PAUSE_MAX));
            Failed { until: Instant::now() + pause, pause, kind: error.kind(), message: error.to_string() }
        });
    }
}

/// Makes a channel to `HOST:PORT` that connects when it is first used and reconnects after it broke. After
/// a failed attempt, calls fail at once with its error for a short pause ([`PAUSE_MIN`]). Every call needs
/// a deadline of its own.
pub fn channel(
    network: Arc<dyn Network>,
    address: &str,
    options: ChannelOptions,
) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .tcp_nodelay(true);
    let address = address.to_owned();
    let attempts = Arc::new(Mutex::new(Attempts::default()));
    let connector = tower::service_fn(move |_: Uri| {
        let (network, address, options) = (network.clone(), address.clone(), options.clone());
        let attempts = attempts.clone();
        async move {
            let refusal = attempts.lock().unwrap_or_else(PoisonError::into_inner).refusal();
            if let Some(refusal) = refusal {
                return Err(refusal);
            }
            let connected = connect(network.as_ref(), &address, &options).await;
            attempts.lock().unwrap_or_else(PoisonError::into_inner).ended(&connected);
            Ok(TokioIo::new(connected?))
        }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

async fn connect(network: &dyn Network, address: &str, options: &ChannelOptions) -> io::Result<BoxedStream> {
    let connection = network.connect(address, &options.purpose).await?;
    if let Some(wanted) = options.organization {
        let peer = connection.peer.unwrap_or_default();
        if !peer.in_organization(wanted) {
            let message = format!("{address} proved to be {:?}, not in {wanted}", peer.common_name);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
    }
    Ok(connection.stream)
}

// === impl PeerStream ===

impl Connected for PeerStream {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use tonic::codegen::Service;

    use super::*;
    use crate::network::{ApiListener, Connection};
    use crate::tls::{Error as TlsError, TlsMaterial};

    /// A network that refuses every connection at once, as if nobody listened.
    #[derive(Default)]
    struct Refusing {
        asked: AtomicU32,
    }

    #[async_trait]
    impl Network for Refusing {
        fn set_material(&self, _: &TlsMaterial) -> Result<(), TlsError> {
            Ok(())
        }

        async fn connect(&self, _: &str, _: &Purpose) -> io::Result<Connection> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Err(io::ErrorKind::ConnectionRefused.into())
        }

        async fn listen(&self, _: &str) -> io::Result<Box<dyn Listener>> {
            Err(io::ErrorKind::Unsupported.into())
        }

        async fn listen_api(&self, _: SocketAddr) -> io::Result<ApiListener> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// Returns whether an error was caused by a refused connection, by the same test as in `consensus`.
    fn refused(error: &tonic::transport::Error) -> bool {
        let mut cause: Option<&dyn std::error::Error> = Some(error);
        while let Some(error) = cause {
            if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
            {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// Seen in `chaos/experiments/asymmetric-partition.yaml`: a master whose way out was cut connected
    /// more than a thousand times a second, for the calls that waited for a leader.
    #[tokio::test(start_paused = true)]
    async fn who_refuses_is_left_alone_for_a_while_however_many_calls_there_are() {
        let network = Arc::new(Refusing::default());
        let options = ChannelOptions {
            purpose: Purpose::Peer,
            organization: None,
            connect_timeout: Duration::from_secs(1),
        };
        let channel = channel(network.clone(), "10.0.0.9:6444", options).unwrap();
        let end = Instant::now() + Duration::from_secs(1);
        let mut calls = 0;
        while Instant::now() < end {
            for _ in 0..10 {
                let mut channel = channel.clone();
                std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
                let request = http::Request::new(tonic::body::Body::empty());
                let error = channel.call(request).await.unwrap_err();
                assert!(refused(&error), "{error:?}");
                calls += 1;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let asked = network.asked.load(Ordering::Relaxed);
        assert!(calls > 5000, "{calls}");
        assert!((8..=16).contains(&asked), "{asked} attempts for {calls} calls");
    }
}
