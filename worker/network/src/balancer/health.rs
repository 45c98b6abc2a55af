//! Probes that ask a master whether it can serve: [`ReadyzProbe`] asks its API server, [`TcpProbe`] is for
//! backends without one. A probe waits for its answer without a limit; the caller decides when an answer is
//! late, and drops a probe that it no longer needs.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{HeaderMap, Request, body::Bytes, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use proto_api::silent_masters;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// Maximum number of bytes of a `/readyz` answer that are read.
const ANSWER_MAX_BYTES: usize = 64 << 10;

/// Answer of a master that is ready to serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// API addresses of masters that this master, as leader, has not heard from for too long. Empty if this
    /// master is not the leader.
    pub silent: Vec<SocketAddr>,
}

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The connection was refused: no process listens.
    #[error("refused: {0}")]
    Refused(io::Error),
    /// The host's kernel did not answer: the host is down or disconnected.
    #[error("unreachable: {0}")]
    Unreachable(io::Error),
    /// TLS or HTTP failed.
    #[error("{0}")]
    Failed(String),
    /// The master answered with this HTTP status, so it is not ready.
    #[error("not ready: status {0}")]
    NotReady(u16),
}

impl From<io::Error> for ProbeError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused(error),
            io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => Self::Unreachable(error),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// A way to ask whether a master is able to serve.
#[async_trait]
pub trait MasterProbe: fmt::Debug + Send + Sync + 'static {
    /// Sends one probe. Connecting takes at most `connect_timeout`; there is no limit for the answer.
    async fn probe(&self, master: SocketAddr, connect_timeout: Duration) -> Result<Readiness, ProbeError>;

    /// Returns when the other side has closed the connection kept since the last probe, which the kernel of a
    /// dying process does at once. Never returns if no connection is kept.
    async fn lost(&self, master: SocketAddr);
}

/// Opens a TCP connection. The other host's kernel accepts it, so that it succeeds even if the process is
/// busy.
pub(super) async fn connect(master: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    match timeout(limit, TcpStream::connect(master)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer to a TCP connection")),
    }
}

/// Probe that succeeds if the master accepts a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpProbe;

#[async_trait]
impl MasterProbe for TcpProbe {
    async fn probe(&self, master: SocketAddr, connect_timeout: Duration) -> Result<Readiness, ProbeError> {
        connect(master, connect_timeout).await?;
        Ok(Readiness::default())
    }

    async fn lost(&self, _master: SocketAddr) {
        std::future::pending().await
    }
}

/// A connection kept between two probes.
struct KeptConnection {
    sender: SendRequest<Empty<Bytes>>,
    /// Cancelled once the connection has ended.
    ended: CancellationToken,
}

/// Probe that succeeds if `GET /readyz` over TLS answers 200. Keeps one connection to each master, so that a
/// probe is a single exchange, and the end of the process is noticed without a probe.
pub struct ReadyzProbe {
    tls: TlsConnector,
    server_name: ServerName<'static>,
    kept: Mutex<BTreeMap<SocketAddr, KeptConnection>>,
}

impl fmt::Debug for ReadyzProbe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ReadyzProbe").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl ReadyzProbe {
    /// Makes the probe. `tls` must trust the cluster's CA; `server_name` is a name in all serving
    /// certificates, such as `kubernetes`.
    pub fn new(tls: Arc<ClientConfig>, server_name: ServerName<'static>) -> Self {
        Self { tls: tls.into(), server_name, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, KeptConnection>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(
        &self,
        master: SocketAddr,
        connect_timeout: Duration,
    ) -> Result<KeptConnection, ProbeError> {
        let stream = connect(master, connect_timeout).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(self.server_name.clone(), stream).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ProbeError::Failed(error.to_string()))?;
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        // The connection's task ends when the sender is dropped or the master closes the connection.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%master, %error, "probe connection ended");
            }
            drop(guard);
        });
        Ok(KeptConnection { sender, ended })
    }
}

/// Sends `GET /readyz` and reads the whole answer, so that the connection can be reused.
async fn ask(sender: &mut SendRequest<Empty<Bytes>>) -> Result<(u16, Readiness), hyper::Error> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = hyper::Uri::from_static("/readyz");
    request.headers_mut().insert(hyper::header::HOST, hyper::header::HeaderValue::from_static("kubernetes"));
    let response = sender.send_request(request).await?;
    let (status, readiness) = (response.status().as_u16(), readiness(response.headers()));
    let _length = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
    Ok((status, readiness))
}

fn readiness(headers: &HeaderMap) -> Readiness {
    let named = headers.get(silent_masters::HEADER).and_then(|value| value.to_str().ok());
    Readiness { silent: named.map(silent_masters::parse).unwrap_or_default() }
}

#[async_trait]
impl MasterProbe for ReadyzProbe {
    async fn probe(&self, master: SocketAddr, connect_timeout: Duration) -> Result<Readiness, ProbeError> {
        let kept = self.kept().remove(&master).filter(|kept| !kept.sender.is_closed());
        let reused = kept.is_some();
        let mut kept = match kept {
            Some(kept) => kept,
            None => self.open(master, connect_timeout).await?,
        };
        let (status, readiness) = match ask(&mut kept.sender).await {
            Ok(answer) => answer,
            // The master may have closed the idle connection at that moment, which does not
            // mean that it is unhealthy.
            Err(_) if reused => {
                kept = self.open(master, connect_timeout).await?;
                ask(&mut kept.sender).await.map_err(|error| ProbeError::Failed(error.to_string()))?
            }
            Err(error) => return Err(ProbeError::Failed(error.to_string())),
        };
        // Keeps the connection even if the master has closed it meanwhile: `lost` then reports that.
        self.kept().insert(master, kept);
        if status == 200 { Ok(readiness) } else { Err(ProbeError::NotReady(status)) }
    }

    async fn lost(&self, master: SocketAddr) {
        let ended = self.kept().get(&master).map(|kept| kept.ended.clone());
        match ended {
            Some(ended) => ended.cancelled().await,
            None => std::future::pending().await,
        }
    }
}
