//! gRPC over the peer network: what a tonic server accepts from a
//! [`Listener`] and a tonic channel that connects through a [`Network`].
//! Called by `consensus`, `master/node` and `worker/node`.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream as FuturesStream;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};

use crate::network::{BoxedStream, Listener, Network, PeerIdentity, Purpose};

/// An accepted connection, as tonic wants it.
pub struct PeerStream {
    stream: BoxedStream,
    info: PeerInfo,
}

/// In the extensions of every request that came over a [`PeerStream`]
/// (`request.extensions().get::<PeerInfo>()`).
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Who the client proved to be; `None` without a certificate.
    pub identity: Option<PeerIdentity>,
    /// Where the client is.
    pub remote: SocketAddr,
}

impl PeerInfo {
    /// Whether the client proved to be in the group.
    pub fn in_organization(&self, organization: &str) -> bool {
        self.identity.as_ref().is_some_and(|identity| identity.in_organization(organization))
    }
}

/// How a channel connects.
#[derive(Debug, Clone)]
pub struct ChannelOptions {
    /// Peer or join.
    pub purpose: Purpose,
    /// The group the server must be in.
    pub organization: Option<&'static str>,
    /// Bound on connecting, TLS handshake included.
    pub connect_timeout: Duration,
}

/// The connections of a listener, for `Server::serve_with_incoming_shutdown`.
pub fn incoming(listener: Box<dyn Listener>) -> impl FuturesStream<Item = io::Result<PeerStream>> + Send {
    futures::stream::unfold(Some(listener), |listener| async move {
        let mut listener = listener?;
        match listener.accept().await {
            Ok(connection) => {
                let info = PeerInfo { identity: connection.peer, remote: connection.remote };
                Some((Ok(PeerStream { stream: connection.stream, info }), Some(listener)))
            }
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// A channel to `HOST:PORT` that connects when it is first used and again after
/// it broke. Every call on it needs a deadline of its own.
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
    let connector = tower::service_fn(move |_: Uri| {
        let (network, address, options) = (network.clone(), address.clone(), options.clone());
        async move {
            let connection = network.connect(&address, &options.purpose).await?;
            if let Some(wanted) = options.organization {
                let peer = connection.peer.unwrap_or_default();
                if !peer.in_organization(wanted) {
                    let message = format!("{address} proved to be {:?}, not in {wanted}", peer.common_name);
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
                }
            }
            Ok::<_, io::Error>(TokioIo::new(connection.stream))
        }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
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
