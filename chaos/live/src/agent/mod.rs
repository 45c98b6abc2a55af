//! The chaos agent of a node: a separate process, so that it outlives the process it kills. It accepts faults
//! from operators over mutual TLS, writes each to a journal before it applies it, and undoes each at its
//! deadline, whether or not a client asks for that. `ephor chaos agent` runs it; nothing else starts it.

mod busy;
mod delay;
mod disk;
mod held;
mod journal;
mod node;
mod packets;
mod process;
mod service;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto_env::grpc::incoming;
use proto_env::{Network, TlsMaterial, TlsNetwork};
use proto_wire::chaos::agent_server::AgentServer;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

pub use busy::Programs;
pub use delay::Delays;
pub use held::{LIMIT_MAX, recover};
pub use node::Node;
pub use process::Supervised;

use held::Faults;
use service::Service;

/// Default port of agents.
pub const AGENT_PORT: u16 = 6446;
/// Maximum size of a request, in bytes.
const REQUEST_LIMIT_BYTES: usize = 64 * 1024;

/// Reason why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The journal or the port cannot be opened.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The certificates are unusable.
    #[error("{0}")]
    Tls(#[from] proto_env::TlsError),
    /// The server failed.
    #[error("{0}")]
    Server(#[from] tonic::transport::Error),
}

/// Runs the agent of `node` on `HOST:PORT` until `shutdown`. Faults that it holds then stay applied; the next
/// agent finds them in the journal.
///
/// # Errors
/// Fails if the agent cannot start.
pub async fn run(
    node: Node,
    journal: &Path,
    listen: &str,
    material: &TlsMaterial,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let faults = Faults::load(node, journal)?;
    // Started before anything can fail: faults past their deadline must be undone.
    let clock = tokio::spawn({
        let faults: Arc<Faults> = faults.clone();
        async move { faults.keep().await }
    });
    let network = TlsNetwork::new(material)?;
    let listener = network.listen(listen).await?;
    tracing::info!(node = faults.node().name, listen, "the chaos agent waits for orders");
    let service = AgentServer::new(Service { faults }).max_decoding_message_size(REQUEST_LIMIT_BYTES);
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .max_concurrent_streams(32)
        .timeout(Duration::from_secs(60))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming(listener), shutdown.cancelled_owned())
        .await?;
    clock.abort();
    Ok(())
}
