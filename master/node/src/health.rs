//! Finds the masters that answer: the leader asks each one's `/readyz` over TLS and
//! tells the controller that writes the endpoints of Service `default/kubernetes`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use consensus::Consensus;
use futures::future::join_all;
use proto_env::{MASTERS_ORGANIZATION, Network, Purpose};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Deadline for a master's answer; one that takes longer is left out.
const TIMEOUT: Duration = Duration::from_millis(1000);

/// Asks all masters at every `interval` and publishes the API addresses of those that answer, until
/// `shutdown`.
pub async fn watch_masters(
    consensus: Arc<Consensus>,
    network: Arc<dyn Network>,
    healthy: watch::Sender<Vec<SocketAddr>>,
    interval: Duration,
    shutdown: CancellationToken,
) {
    let mut interval = tokio::time::interval(interval);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = interval.tick() => {}
        }
        let members = consensus.members();
        // A master that has just joined votes once it has caught up, and is not to be asked before.
        let questions = members.iter().filter(|member| member.voter).map(|member| {
            let (network, own) = (network.clone(), member.id == consensus.node_id());
            async move {
                let address: SocketAddr = member.api_address.parse().ok()?;
                let asked = async { own || ready(network.as_ref(), address).await.unwrap_or(false) };
                tokio::time::timeout(TIMEOUT, asked).await.unwrap_or(false).then_some(address)
            }
        });
        let mut answered: Vec<SocketAddr> = join_all(questions).await.into_iter().flatten().collect();
        answered.sort_unstable();
        healthy.send_if_modified(|known| {
            let changed = *known != answered;
            known.clone_from(&answered);
            changed
        });
    }
}

/// Asks `/readyz`; the health paths need no credentials.
async fn ready(network: &dyn Network, address: SocketAddr) -> std::io::Result<bool> {
    let connection = network.connect(&address.to_string(), &Purpose::Api).await?;
    if !connection.peer.is_some_and(|peer| peer.in_organization(MASTERS_ORGANIZATION)) {
        return Ok(false);
    }
    let mut stream = connection.stream;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: master\r\nConnection: close\r\n\r\n").await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    Ok(&head == b"HTTP/1.1 200")
}
