//! A TCP balancer in front of the masters. Every worker runs one: its agent, its pods'
//! `kubernetes.default` and the printed kubeconfig of `ephor dev` use it, so none of them needs to know
//! which master is alive. TLS passes through untouched. `health` finds out who is alive; connections to
//! a master that is not are reset, so that clients come back at once and land elsewhere.
//! Started by `worker/node` and `ops/cli`; `network.rs` lets it serve pods too.

mod health;
mod members;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use socket2::SockRef;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use health::{Probe, ProbeError, ReadyzProbe, TcpProbe};
use members::Members;

/// How the balancer probes and gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalancerConfig {
    /// Pause between two probes of a master.
    pub probe_interval: Duration,
    /// How long a probe may take; a stopped process accepts connections but never answers.
    pub probe_timeout: Duration,
    /// Probes in a row that must time out or be answered badly before a master counts as dead; after the
    /// first the others follow at once. One refused connection is enough.
    pub failures: u32,
    /// How long connecting to a master may take before the next is tried.
    pub connect_timeout: Duration,
    /// Connections at a time; further clients wait in the listener's backlog.
    pub max_connections: usize,
}

impl Default for BalancerConfig {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_millis(150),
            probe_timeout: Duration::from_millis(300),
            failures: 2,
            connect_timeout: Duration::from_millis(400),
            max_connections: 4096,
        }
    }
}

/// The balancer: one set of masters and probes, any number of listeners.
#[derive(Debug)]
pub struct Balancer {
    config: BalancerConfig,
    members: Members,
    permits: Arc<Semaphore>,
    connections: TaskTracker,
}

impl Balancer {
    /// Starts probing the masters that `masters` names, and follows its changes until shutdown. An
    /// empty list is ignored: the last known masters are better than none.
    pub fn start(
        config: BalancerConfig,
        masters: watch::Receiver<Vec<SocketAddr>>,
        probe: Arc<dyn Probe>,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let members = Members::default();
        tokio::spawn(members::follow(members.clone(), config, masters, probe, shutdown));
        let permits = Arc::new(Semaphore::new(config.max_connections));
        Arc::new(Self { config, members, permits, connections: TaskTracker::new() })
    }

    /// The masters and whether each answers, for status.
    pub fn health(&self) -> Vec<(SocketAddr, bool)> {
        self.members.health()
    }

    /// Accepts and serves until shutdown; then waits up to a second for open connections to end.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        loop {
            let accepted = async {
                // Never closed: the semaphore lives as long as the balancer.
                let permit = self.permits.clone().acquire_owned().await.ok()?;
                Some((permit, listener.accept().await))
            };
            let (permit, accepted) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = accepted => match accepted {
                    Some(accepted) => accepted,
                    None => break,
                },
            };
            match accepted {
                Ok((client, peer)) => {
                    let (balancer, shutdown) = (self.clone(), shutdown.clone());
                    self.connections.spawn(async move {
                        if let Err(error) = balancer.relay(client, &shutdown).await {
                            tracing::debug!(%peer, %error, "balanced connection ended");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: accepting again at once would spin.
                    tracing::warn!(%error, "the balancer could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        self.connections.close();
        if timeout(Duration::from_secs(1), self.connections.wait()).await.is_err() {
            tracing::debug!(open = self.connections.len(), "balanced connections were cut at shutdown");
        }
    }

    async fn relay(&self, mut client: TcpStream, shutdown: &CancellationToken) -> io::Result<()> {
        let (mut server, alive) = match self.connect().await {
            Ok(connected) => connected,
            Err(error) => {
                reset(&client);
                return Err(error);
            }
        };
        // Small requests must not wait for more data.
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        tokio::select! {
            biased;
            () = alive.cancelled() => {
                reset(&client);
                reset(&server);
                Err(io::Error::new(io::ErrorKind::ConnectionReset, "the master is dead"))
            }
            () = shutdown.cancelled() => Ok(()),
            result = copy_bidirectional(&mut client, &mut server) => result.map(drop),
        }
    }

    /// Connects to a master: healthy ones first, in turn, then the others. The token is cancelled when
    /// that master is found dead.
    async fn connect(&self) -> io::Result<(TcpStream, CancellationToken)> {
        let mut last = io::Error::new(io::ErrorKind::NotConnected, "no masters are known");
        for (address, alive) in self.members.in_turn() {
            match timeout(self.config.connect_timeout, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok((stream, alive)),
                Ok(Err(error)) => {
                    self.members.suspect(address);
                    last = error;
                }
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }
}

/// Makes closing the socket send a reset, which a client notices at once and cannot mistake for an
/// answer that ended.
fn reset(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "a connection is closed without a reset");
    }
}
