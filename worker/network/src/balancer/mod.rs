//! A TCP balancer in front of the masters. Every worker runs one: its agent, its pods'
//! `kubernetes.default` and the printed kubeconfig of `ephor dev` use it, so none of them needs to know
//! which master is alive. TLS passes through untouched. `watcher` finds out who is alive; connections to
//! a master that is dead (`members` says what that means) are reset, so that clients come back at once
//! and land elsewhere. Started by `worker/node` and `ops/cli`; `network.rs` lets it serve pods too.

mod clients;
mod health;
mod members;
mod traffic;
mod watcher;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use socket2::SockRef;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use clients::Clients;
pub use clients::ListenerLimits;
pub use health::{Probe, ProbeError, Readiness, ReadyzProbe, TcpProbe};
use members::{Candidate, Members};
use traffic::NotedStream;

/// How the balancer probes and gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalancerConfig {
    /// Pause between two probes of a master that is ready and gives no reason for doubt.
    pub probe_interval: Duration,
    /// A master that takes longer than this to answer a probe is late: new connections go elsewhere.
    pub probe_timeout: Duration,
    /// Answers in a row that must say "not ready" before a master counts as such; after the first the
    /// others follow at once.
    pub failures: u32,
    /// How long a host may leave TCP connections unanswered before it counts as gone.
    pub gone_after: Duration,
    /// How long connecting to a master may take before the next is tried.
    pub connect_timeout: Duration,
}

impl Default for BalancerConfig {
    fn default() -> Self {
        Self {
            // 5,000 workers then ask each master 1,667 times a second.
            probe_interval: Duration::from_secs(3),
            probe_timeout: Duration::from_millis(300),
            failures: 2,
            gone_after: Duration::from_secs(2),
            connect_timeout: Duration::from_millis(400),
        }
    }
}

/// The balancer: one set of masters and probes, any number of listeners.
#[derive(Debug)]
pub struct Balancer {
    config: BalancerConfig,
    members: Members,
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
        Arc::new(Self { config, members, connections: TaskTracker::new() })
    }

    /// The masters and whether each is ready, for status.
    pub fn health(&self) -> Vec<(SocketAddr, bool)> {
        self.members.health()
    }

    /// Accepts and serves within `limits` until shutdown; then waits up to a second for open connections
    /// to end. Each listener has limits of its own, so that clients of one cannot shut out those of another.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        limits: ListenerLimits,
        shutdown: CancellationToken,
    ) {
        let clients = Clients::new(limits);
        loop {
            let accepted = async {
                let place = clients.place().await;
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((client, peer)) => {
                    let Some(admitted) = clients.admit(place, peer.ip()) else {
                        tracing::debug!(%peer, "a client has too many connections: one more is reset");
                        reset(&client);
                        continue;
                    };
                    let (balancer, shutdown) = (self.clone(), shutdown.clone());
                    self.connections.spawn(async move {
                        if let Err(error) = balancer.relay(client, &shutdown).await {
                            tracing::debug!(%peer, %error, "balanced connection ended");
                        }
                        drop(admitted);
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
        server.stream.set_nodelay(true)?;
        tokio::select! {
            biased;
            () = alive.cancelled() => {
                reset(&client);
                reset(&server.stream);
                Err(io::Error::new(io::ErrorKind::ConnectionReset, "the master is dead"))
            }
            () = shutdown.cancelled() => Ok(()),
            result = copy_bidirectional(&mut client, &mut server) => result.map(drop),
        }
    }

    /// Connects to a master: ready ones first, in turn, then the others. The token is cancelled when
    /// that master is found dead.
    async fn connect(&self) -> io::Result<(NotedStream, CancellationToken)> {
        let mut last = io::Error::new(io::ErrorKind::NotConnected, "no masters are known");
        for Candidate { address, alive, traffic } in self.members.in_turn() {
            match health::connect(address, self.config.connect_timeout).await {
                Ok(stream) => return Ok((NotedStream { stream, traffic }, alive)),
                Err(error) => {
                    self.members.suspect(address);
                    last = error;
                }
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
