//! Renews the node's certificates while it runs: after two thirds of their lifetime, at any master that
//! answers. A node that was off past their expiry gets new ones too while its Node object exists: masters
//! accept an expired certificate for renewal only. `build.rs` runs this task beside the users of the
//! certificates.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use proto_env::{Network, TlsNetwork};
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use worker_agent::CertificateEnds;

use crate::api_client::ApiCredentials;
use crate::credentials::{Error, Master, NodeCredentials};
use crate::heartbeat::Heartbeat;
use crate::tls;

/// Maximum time between looks at the wall clock, which may jump.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// Pause between rounds over the masters if none has renewed the certificates: first value, and maximum.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Part of the certificates' lifetime over which the renewals of many nodes are spread.
const SPREAD: f64 = 0.1;

/// Task that renews certificates, with all users of them that need the new ones.
pub struct Renewal {
    /// Name of the node.
    pub node: String,
    /// Data directory in which the certificates are stored.
    pub data_dir: PathBuf,
    /// Current certificates.
    pub credentials: Mutex<NodeCredentials>,
    /// Masters that can be asked.
    pub masters: watch::Receiver<Vec<Master>>,
    /// Network of the peer port, used by heartbeats and the operators' port.
    pub network: Arc<TlsNetwork>,
    /// TLS configuration of the node's HTTPS server.
    pub serving: watch::Sender<Arc<ServerConfig>>,
    /// Certificate of the API client.
    pub api: ApiCredentials,
    /// When the certificates end, for `/metrics` and for the masters.
    pub ends: watch::Sender<CertificateEnds>,
}

impl Renewal {
    /// Renews certificates when due, until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut due = self.due();
        let mut retry = RETRY_MIN;
        loop {
            let pause = due.duration_since(SystemTime::now()).unwrap_or_default().min(CHECK_INTERVAL);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let now = SystemTime::now();
            if now < due {
                continue;
            }
            let renewed = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                renewed = self.renew() => renewed,
            };
            if renewed {
                (due, retry) = (self.due(), RETRY_MIN);
            } else {
                due = SystemTime::now() + retry.mul_f64(rand::random_range(0.5..1.0));
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }

    /// Returns the time at which the current certificates are due for renewal.
    fn due(&self) -> SystemTime {
        match self.present().certificate() {
            Ok(info) => info.renew_at() + info.lifetime().mul_f64(rand::random_range(0.0..SPREAD)),
            Err(error) => {
                tracing::error!(%error, "the node's certificate is not readable");
                SystemTime::now()
            }
        }
    }

    /// Asks the masters in turn; returns whether one has renewed the certificates.
    async fn renew(&self) -> bool {
        let masters = self.masters.borrow().clone();
        for Master { peer, .. } in masters {
            match self.renew_at(&peer).await {
                Ok(renewed) => {
                    self.put_to_use(renewed).await;
                    return true;
                }
                Err(error) => tracing::warn!(master = peer, %error, "the certificates were not renewed"),
            }
        }
        false
    }

    async fn renew_at(&self, master: &str) -> Result<NodeCredentials, Error> {
        let network: Arc<dyn Network> = self.network.clone();
        self.present().renew(&self.node, Heartbeat::channel(&network, master)?).await
    }

    fn present(&self) -> NodeCredentials {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn put_to_use(&self, renewed: NodeCredentials) {
        if let Err(error) = renewed.store_certificates(&self.data_dir) {
            // Not fatal: after a restart the old certificates can still be used for a renewal.
            tracing::error!(%error, "the new certificates could not be stored");
        }
        if let Err(error) = self.network.set_material(&renewed.client) {
            tracing::error!(%error, "the new client certificate is not usable on the peer port");
        }
        if let Err(error) = self.api.replace(&renewed.client).await {
            tracing::error!(%error, "the new client certificate is not usable for the API");
        }
        match tls::serving(&renewed.serving) {
            Ok(config) => drop(self.serving.send_replace(config)),
            Err(error) => tracing::error!(%error, "the new serving certificate is not usable"),
        }
        self.ends.send_replace(renewed.ends());
        *self.credentials.lock().unwrap_or_else(PoisonError::into_inner) = renewed;
        tracing::info!(node = self.node, "the certificates of this node were renewed");
    }
}
