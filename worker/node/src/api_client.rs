//! The client of the masters' API that agent and network share: through the local
//! balancer, with the node's client certificate. It outlives that certificate:
//! requests go over connections made with the newest one.

use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use proto_env::TlsMaterial;
use tokio::sync::watch;

use crate::tls;

/// Replaces the certificate of the client that [`renewable`] gave.
pub struct ApiCredentials {
    port: u16,
    current: watch::Sender<Client>,
}

/// A client of the API behind 127.0.0.1:`port`, and the way to renew its certificate.
///
/// # Errors
/// One line, where the certificate is not usable.
pub async fn renewable(port: u16, material: &TlsMaterial) -> Result<(Client, ApiCredentials), String> {
    let current = watch::Sender::new(connecting(port, material).await?);
    let newest = current.subscribe();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let client = newest.borrow().clone();
        async move { client.send(request).await }
    });
    Ok((Client::new(service, "default"), ApiCredentials { port, current }))
}

impl ApiCredentials {
    /// Makes connections with another certificate from now on. Answers that are under way,
    /// watches too, end on the old ones.
    ///
    /// # Errors
    /// One line, where the certificate is not usable.
    pub async fn replace(&self, material: &TlsMaterial) -> Result<(), String> {
        self.current.send_replace(connecting(self.port, material).await?);
        Ok(())
    }
}

/// A client with connections of its own.
async fn connecting(port: u16, material: &TlsMaterial) -> Result<Client, String> {
    let text = tls::kubeconfig(&format!("https://127.0.0.1:{port}"), material);
    let file = Kubeconfig::from_yaml(&text).map_err(|error| error.to_string())?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    Client::try_from(config.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}
