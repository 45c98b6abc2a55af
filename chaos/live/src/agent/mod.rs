//! The chaos agent of a node: a process of its own, so that it outlives what it
//! kills. It takes faults from operators over mutual TLS, keeps each in a journal
//! before it applies it, and undoes each at its limit whether or not anybody is
//! left to ask for it. `ephor chaos agent` runs it; nothing else starts it.

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

/// The default port of agents.
pub const AGENT_PORT: u16 = 6446;
/// The largest request, in bytes.
const REQUEST_LIMIT_BYTES: usize = 64 * 1024;

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The journal, or the port.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The certificates.
    #[error("{0}")]
    Tls(#[from] proto_env::TlsError),
    /// The server.
    #[error("{0}")]
    Server(#[from] tonic::transport::Error),
}

/// Runs the agent of `node` on `HOST:PORT` until `shutdown`. What it holds then
/// stays: its journal says so to the next one.
///
/// # Errors
/// Where it cannot begin.
pub async fn run(
    node: Node,
    journal: &Path,
    listen: &str,
    material: &TlsMaterial,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let faults = Faults::load(node, journal)?;
    // Before anything can fail: what is over must be undone.
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
