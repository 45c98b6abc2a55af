//! Renews the node's certificates while it runs: after two thirds of their life, at
//! any master that answers. A node that was off until after their end gets new ones
//! too, as long as its Node exists: masters take the expired one for that alone.
//! `build.rs` runs it beside everything that uses the certificates.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use proto_env::{Network, TlsNetwork};
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api_client::ApiCredentials;
use crate::credentials::{Error, Master, NodeCredentials};
use crate::heartbeat::Heartbeat;
use crate::tls;

/// The wall clock is looked at this often, for it may jump.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// Between rounds over the masters when none has renewed the certificates: at first, and
/// at most.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Renewals of many nodes are spread over this part of the certificates' life.
const SPREAD: f64 = 0.1;

/// Everything that a renewal replaces.
pub struct Renewal {
    /// The node's name.
    pub node: String,
    /// Where the certificates lie.
    pub data_dir: PathBuf,
    /// The present ones.
    pub credentials: Mutex<NodeCredentials>,
    /// The masters to ask.
    pub masters: watch::Receiver<Vec<Master>>,
    /// The peer port's side: beats, and operators' port.
    pub network: Arc<TlsNetwork>,
    /// The node's HTTPS server.
    pub serving: watch::Sender<Arc<ServerConfig>>,
    /// The API client.
    pub api: ApiCredentials,
}

impl Renewal {
    /// Runs until `shutdown`.
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

    /// When the present certificates should be replaced.
    fn due(&self) -> SystemTime {
        match self.present().certificate() {
            Ok(info) => info.renew_at() + info.lifetime().mul_f64(rand::random_range(0.0..SPREAD)),
            Err(error) => {
                tracing::error!(%error, "the node's certificate is not readable");
                SystemTime::now()
            }
        }
    }

    /// Asks the masters in turn; whether one has renewed the certificates.
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
            // The old ones are good for another renewal after a restart.
            tracing::error!(%error, "the new certificates could not be written down");
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
        *self.credentials.lock().unwrap_or_else(PoisonError::into_inner) = renewed;
        tracing::info!(node = self.node, "the certificates of this node were renewed");
    }
}
