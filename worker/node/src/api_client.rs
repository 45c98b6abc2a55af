//! The API client that agent and network share: it connects through the local balancer with the node's client
//! certificate. The client is kept when the certificate is renewed: new requests use connections made with
//! the newest one.

use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use proto_env::TlsMaterial;
use tokio::sync::watch;

use crate::tls;

/// Replaces the certificate of the client created by [`renewable`].
pub struct ApiCredentials {
    port: u16,
    current: watch::Sender<Client>,
}

/// Creates a client of the API behind 127.0.0.1:`port`, and the handle that renews its certificate.
///
/// # Errors
/// A one-line text, if the certificate cannot be used.
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
    /// Makes new connections with another certificate from now on. Responses in progress, including watches,
    /// stay on their old connections.
    ///
    /// # Errors
    /// A one-line text, if the certificate cannot be used.
    pub async fn replace(&self, material: &TlsMaterial) -> Result<(), String> {
        self.current.send_replace(connecting(self.port, material).await?);
        Ok(())
    }
}

/// Creates a client with its own connections.
async fn connecting(port: u16, material: &TlsMaterial) -> Result<Client, String> {
    let text = tls::kubeconfig(&format!("https://127.0.0.1:{port}"), material);
    let file = Kubeconfig::from_yaml(&text).map_err(|error| error.to_string())?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    Client::try_from(config.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}
