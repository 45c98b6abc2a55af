//! The listener of one master: TLS, HTTP/1.1 and HTTP/2, limits and timeouts on connections, graceful
//! shutdown. `master/node` builds an [`ApiServer`], serves it, and gets in-process clients from it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use consensus::Consensus;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use proto_env::{ApiListener, Connection, Env};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::api::Api;
use crate::authn::service_account::TokenIssuer;
use crate::authn::signing_keys::{ServiceAccountKeys, SigningKeys};
use crate::authn::{Authenticator, PeerUser, RefusedCertificate, TokenAuthenticator, key_rotation, x509};
use crate::authz::Authorizer;
use crate::body;
use crate::chain;
use crate::context::UserInfo;
use crate::dial::NodeDialer;
use crate::heavy::HeavyWork;
use crate::limits::InFlight;
use crate::local::LocalService;
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::settings::ClusterSettings;
use crate::table::Rows;
use crate::tls::{self, NodeClient, Serving, TlsIdentity};

/// Name of the key of ServiceAccount tokens among the certificates in metrics and `ephor status`.
pub const SERVICE_ACCOUNT_KEY: &str = "service-account-key";
/// Longest TLS handshake; the connection is closed after it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the headers of an HTTP/1.1 request, idle time between requests included.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest wait for the first request after the handshake; the connection is closed after it.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval between pings on HTTP/2 connections.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Time that running requests have to end after shutdown began.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
const MAX_HEADER_BYTES: usize = 1 << 20;
/// Maximum number of HTTP/2 streams per connection; all watches of a controller-manager share one connection.
const MAX_STREAMS: u32 = 1000;

/// Limits of one API server; the defaults are stock's where stock has them.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Maximum number of open connections; further ones wait to be accepted.
    pub connections: usize,
    /// Maximum number of reads running at once.
    pub reads: usize,
    /// Maximum number of writes running at once.
    pub writes: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self { connections: 20_000, reads: 400, writes: 200 }
    }
}

/// Configuration and parts from which an API server is built.
pub struct Config {
    /// This master's consensus, with its store.
    pub consensus: Arc<Consensus>,
    /// Settings all masters share.
    pub settings: ClusterSettings,
    /// The serving certificate, and the CA that client certificates come from.
    pub serving: TlsIdentity,
    /// Client certificate shown to nodes' HTTPS servers on 10250.
    pub node_client: TlsIdentity,
    /// Where the keys of ServiceAccount tokens come from.
    pub service_account_keys: ServiceAccountKeys,
    /// Lookups of bearer tokens other than ServiceAccount tokens.
    pub token_authenticators: Vec<Arc<dyn TokenAuthenticator>>,
    /// `HOST:PORT` at which clients reach this API server.
    pub advertise_address: String,
    /// Limits on connections and requests.
    pub limits: ServerLimits,
}

/// Why an API server cannot be built or keep running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// TLS material cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The ServiceAccount key cannot be used.
    #[error(transparent)]
    ServiceAccountKey(#[from] crate::authn::signing_keys::Error),
    /// The record of the ServiceAccount keys of a new cluster cannot be written.
    #[error("the ServiceAccount keys: {0}")]
    KeyRecord(#[from] proto_api::status::Status),
    /// The metrics cannot be registered.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The listener cannot be used.
    #[error("the API listener: {0}")]
    Listener(#[from] std::io::Error),
}

/// The API server of one master. Cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    api: Arc<Api>,
    serving: Serving,
    connections: Arc<Semaphore>,
}

impl ApiServer {
    /// Builds a server; starts nothing yet.
    ///
    /// # Errors
    ///
    /// Fails if certificates or keys cannot be used.
    pub fn new(config: Config, env: &Env) -> Result<Self, Error> {
        let serving = Serving::new(&config.serving)?;
        let issuer = config.settings.service_account_issuer.clone();
        let tokens = Arc::new(TokenIssuer::new(issuer, SigningKeys::new(config.service_account_keys)?));
        let registry =
            Registry::new(config.consensus, Arc::clone(&env.clock), Arc::clone(&env.random), config.settings);
        let api = Api {
            registry,
            authenticator: Authenticator {
                tokens: config.token_authenticators,
                service_accounts: Arc::clone(&tokens),
            },
            authorizer: Authorizer,
            in_flight: InFlight::new(config.limits.reads, config.limits.writes),
            heavy: HeavyWork::new(env.blocking),
            rows: Rows::default(),
            metrics: Metrics::new()?,
            tokens,
            nodes: NodeDialer::new(NodeClient::new(config.node_client)?),
            advertise_address: config.advertise_address,
            shutdown: env.shutdown.child_token(),
        };
        let connections = Arc::new(Semaphore::new(config.limits.connections));
        Ok(Self { api: Arc::new(api), serving, connections })
    }

    /// Deletes events that were not written for `ttl`, as the leader of `term`, until the future is dropped.
    pub async fn expire_events(&self, term: u64, ttl: Duration) {
        self.api.registry.expire_events(term, ttl).await;
    }

    /// Records the key that signs ServiceAccount tokens in a new cluster; to be called before it serves.
    ///
    /// # Errors
    ///
    /// Where the record cannot be written.
    pub async fn begin_service_account_keys(&self) -> Result<(), Error> {
        Ok(key_rotation::begin(&self.api.registry, self.api.tokens.keys()).await?)
    }

    /// Rotates the keys that sign ServiceAccount tokens, as the leader of `term`, until the future is dropped.
    pub async fn rotate_service_account_keys(&self, term: u64) {
        key_rotation::rotate(&self.api.registry, self.api.tokens.keys(), term).await;
    }

    /// Returns when the lifetime of the key ends that signs ServiceAccount tokens, with its name in metrics.
    pub fn service_account_key_end(&self) -> (&'static str, SystemTime) {
        (SERVICE_ACCOUNT_KEY, self.api.tokens.key_end(&self.api.registry))
    }

    /// Returns an in-process client that acts as `user`; its writes are refused once the term `fence` has
    /// passed.
    ///
    /// Must be called inside a tokio runtime.
    pub fn local_client(&self, user: UserInfo, fence: Option<u64>) -> kube::Client {
        kube::Client::new(LocalService::new(Arc::clone(&self.api), user, fence), "default")
    }

    /// Replaces the serving certificate for new connections, for example after a master joined.
    ///
    /// # Errors
    ///
    /// Fails if the material does not parse; the old certificate stays.
    pub fn set_serving_certificate(&self, identity: &TlsIdentity) -> Result<(), Error> {
        Ok(self.serving.certificate.replace(identity)?)
    }

    /// Replaces the client certificate shown to nodes, for new connections.
    ///
    /// # Errors
    ///
    /// Fails if the material does not parse; the old certificate stays.
    pub fn set_node_client(&self, identity: TlsIdentity) -> Result<(), Error> {
        self.api.nodes.replace(NodeClient::new(identity)?);
        Ok(())
    }

    /// Reports in `/metrics` when each named certificate expires.
    pub fn report_certificates(&self, expirations: &[(&str, SystemTime)]) {
        self.api.metrics.certificates_expire(expirations);
    }

    /// Serves a listener until the shutdown of `env`, then lets running requests end.
    ///
    /// # Errors
    ///
    /// Fails if the listener has no address; failed accepts are logged and retried.
    pub async fn serve(&self, mut listener: ApiListener) -> Result<(), Error> {
        let address = match &listener {
            ApiListener::Tcp(listener) => listener.local_addr()?,
            ApiListener::Authenticated(listener) => listener.local_address(),
        };
        tracing::info!(%address, "the API server listens");
        let running = TaskTracker::new();
        loop {
            let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await else { break };
            let accepted = tokio::select! {
                biased;
                () = self.api.shutdown.cancelled() => break,
                accepted = accept(&mut listener) => accepted,
            };
            match accepted {
                Ok(accepted) => {
                    let server = self.clone();
                    running.spawn(async move {
                        server.connection(accepted).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    // The usual cause is a lack of file descriptors: retrying at once would spin.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        running.close();
        if tokio::time::timeout(SHUTDOWN_GRACE, running.wait()).await.is_err() {
            tracing::warn!("requests were still running when the API server stopped");
        }
        Ok(())
    }

    async fn connection(&self, accepted: Accepted) {
        let (stream, remote) = match accepted {
            Accepted::Tcp(stream, remote) => (stream, remote),
            Accepted::Authenticated(connection) => {
                let peer = connection.peer.map_or(Peer::Nobody, |peer| {
                    let groups: Vec<&str> = peer.organizations.iter().map(String::as_str).collect();
                    let user = UserInfo::authenticated(&peer.common_name, &groups);
                    Peer::Known(PeerUser { user, valid_until: None })
                });
                return self.http(connection.stream, connection.remote, peer).await;
            }
        };
        // Disables Nagle's algorithm, which would delay the small writes of watches.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%remote, %error, "TCP_NODELAY");
        }
        let acceptor = TlsAcceptor::from(Arc::clone(&self.serving.config));
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%remote, %error, "TLS handshake"),
            Err(_) => return tracing::debug!(%remote, "the TLS handshake took too long"),
        };
        let certificates = stream.get_ref().1.peer_certificates().map(<[CertificateDer<'static>]>::to_vec);
        let peer = self.peer(certificates.as_deref());
        self.http(stream, remote, peer).await;
    }

    /// Returns the user and expiry of the client certificate; called once per connection.
    fn peer(&self, chain: Option<&[CertificateDer<'static>]>) -> Peer {
        let Some(chain) = chain.filter(|c| !c.is_empty()) else { return Peer::Nobody };
        let now = self.api.registry.clock.now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        if !self.serving.vouches_for(chain, UnixTime::since_unix_epoch(now)) {
            return Peer::Refused;
        }
        match (x509::user(&chain[0]), x509::valid_until(chain)) {
            (Some(user), Some(until)) => Peer::Known(PeerUser { user, valid_until: Some(until) }),
            _ => Peer::Refused,
        }
    }

    async fn http<S>(&self, stream: S, remote: SocketAddr, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let api = Arc::clone(&self.api);
        let asked = Arc::new(AtomicBool::new(false));
        let first = Arc::clone(&asked);
        let service = service_fn(move |request: Request<Incoming>| {
            first.store(true, Ordering::Relaxed);
            let mut request = request.map(body::boxed);
            request.extensions_mut().insert(remote);
            match &peer {
                Peer::Nobody => {}
                Peer::Known(user) => {
                    request.extensions_mut().insert(user.clone());
                }
                Peer::Refused => {
                    request.extensions_mut().insert(RefusedCertificate);
                }
            }
            let api = Arc::clone(&api);
            async move { Ok::<_, std::convert::Infallible>(chain::handle(api, request).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL / 2);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        // hyper has no time limit for the first bytes of a connection.
        let silent = async {
            tokio::time::sleep(FIRST_REQUEST_TIMEOUT).await;
            if asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            biased;
            ended = connection.as_mut() => ended,
            () = silent => return tracing::debug!(%remote, "no request came"),
            () = self.api.shutdown.cancelled() => {
                // Running requests finish; clients send new ones to another master.
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%remote, %error, "a connection ended");
        }
    }
}

/// An accepted connection: plain TCP, or one whose transport has authenticated the client.
enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Authenticated(Connection),
}

async fn accept(listener: &mut ApiListener) -> std::io::Result<Accepted> {
    match listener {
        ApiListener::Tcp(listener) => {
            listener.accept().await.map(|(stream, remote)| Accepted::Tcp(stream, remote))
        }
        ApiListener::Authenticated(listener) => listener.accept().await.map(Accepted::Authenticated),
    }
}

/// Result of checking a connection's client certificate.
#[derive(Clone)]
enum Peer {
    Nobody,
    Known(PeerUser),
    Refused,
}
