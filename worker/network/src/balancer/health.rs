//! How a master's health is asked for. A stopped process still accepts connections in the kernel, so only
//! an answer from the API server counts: [`ReadyzProbe`]. [`TcpProbe`] is for backends without one.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, body::Bytes, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nobody listens there: the process is gone for certain.
    #[error("refused: {0}")]
    Refused(io::Error),
    /// Connecting, TLS or HTTP failed in another way.
    #[error("{0}")]
    Failed(String),
    /// It answered that it is not ready.
    #[error("not ready: status {0}")]
    NotReady(u16),
    /// It did not answer in time.
    #[error("no answer in time")]
    Deadline,
}

impl From<io::Error> for ProbeError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused(error),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Asks whether a master is able to serve. The balancer bounds the time it takes.
#[async_trait]
pub trait Probe: fmt::Debug + Send + Sync + 'static {
    /// One probe.
    async fn probe(&self, master: SocketAddr) -> Result<(), ProbeError>;
}

/// Healthy is what accepts a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpProbe;

#[async_trait]
impl Probe for TcpProbe {
    async fn probe(&self, master: SocketAddr) -> Result<(), ProbeError> {
        TcpStream::connect(master).await?;
        Ok(())
    }
}

/// Healthy is what answers `GET /readyz` over TLS with 200. Keeps one connection to each master, so that
/// a probe costs one small exchange.
pub struct ReadyzProbe {
    tls: TlsConnector,
    server_name: ServerName<'static>,
    idle: Mutex<BTreeMap<SocketAddr, SendRequest<Empty<Bytes>>>>,
}

impl fmt::Debug for ReadyzProbe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ReadyzProbe").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl ReadyzProbe {
    /// `tls` trusts the cluster's CA; `server_name` is one that all serving certificates have, such as
    /// `kubernetes`.
    pub fn new(tls: Arc<ClientConfig>, server_name: ServerName<'static>) -> Self {
        Self { tls: tls.into(), server_name, idle: Mutex::default() }
    }

    async fn open(&self, master: SocketAddr) -> Result<SendRequest<Empty<Bytes>>, ProbeError> {
        let stream = TcpStream::connect(master).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(self.server_name.clone(), stream).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ProbeError::Failed(error.to_string()))?;
        // Ends when the sender is dropped or the master closes.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%master, %error, "probe connection ended");
            }
        });
        Ok(sender)
    }

    async fn ask(&self, sender: &mut SendRequest<Empty<Bytes>>) -> Result<u16, hyper::Error> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = hyper::Uri::from_static("/readyz");
        request
            .headers_mut()
            .insert(hyper::header::HOST, hyper::header::HeaderValue::from_static("kubernetes"));
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        // The connection is of further use only once the (short) body is read.
        let _length = Limited::new(response.into_body(), 64 << 10).collect().await;
        Ok(status)
    }
}

#[async_trait]
impl Probe for ReadyzProbe {
    async fn probe(&self, master: SocketAddr) -> Result<(), ProbeError> {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).remove(&master);
        let kept = kept.filter(|sender| !sender.is_closed());
        let reused = kept.is_some();
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.open(master).await?,
        };
        let status = match self.ask(&mut sender).await {
            Ok(status) => status,
            // The master may have closed an idle connection just then: that alone is no bad sign.
            Err(_) if reused => {
                sender = self.open(master).await?;
                self.ask(&mut sender).await.map_err(|error| ProbeError::Failed(error.to_string()))?
            }
            Err(error) => return Err(ProbeError::Failed(error.to_string())),
        };
        if !sender.is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).insert(master, sender);
        }
        if status == 200 { Ok(()) } else { Err(ProbeError::NotReady(status)) }
    }
}
