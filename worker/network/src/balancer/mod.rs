//! A TCP balancer in front of the masters. Every worker runs one: its agent, its pods' `kubernetes.default`
//! and the kubeconfig printed by `ephor dev` use it, so that none of them needs to know which master is
//! healthy. Passes TLS through unchanged. `watcher` probes the masters; connections to a dead master
//! (`members` defines that) are reset, so that clients reconnect at once to another master. Started by
//! `worker/node` and `ops/cli`; `network.rs` lets it serve pods too.

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
pub use health::{MasterProbe, ProbeError, Readiness, ReadyzProbe, TcpProbe};
use members::{Candidate, Members};
use traffic::TrackedStream;

/// Timing of probes and connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalancerConfig {
    /// Pause between two probes of a master that is ready and shows no sign of failure.
    pub probe_interval: Duration,
    /// Time after which a master's answer to a probe is late: new connections then go elsewhere.
    pub probe_timeout: Duration,
    /// Number of consecutive "not ready" answers after which a master counts as not ready; after the first
    /// one the probes follow without a pause.
    pub failures: u32,
    /// Time without answers to TCP connections after which a host counts as gone.
    pub gone_after: Duration,
    /// Maximum time for connecting to a master before the next one is tried.
    pub connect_timeout: Duration,
}

impl Default for BalancerConfig {
    fn default() -> Self {
        Self {
            // With 5,000 workers each master is then probed 1,667 times a second.
            probe_interval: Duration::from_secs(3),
            probe_timeout: Duration::from_millis(300),
            failures: 2,
            gone_after: Duration::from_secs(2),
            connect_timeout: Duration::from_millis(400),
        }
    }
}

/// The balancer: a list of masters with their probes, and any number of listeners.
#[derive(Debug)]
pub struct Balancer {
    config: BalancerConfig,
    members: Members,
    connections: TaskTracker,
}

impl Balancer {
    /// Starts probing the masters in `masters`, and follows changes of that list until shutdown. An empty
    /// list is ignored and the last known masters are kept.
    pub fn start(
        config: BalancerConfig,
        masters: watch::Receiver<Vec<SocketAddr>>,
        probe: Arc<dyn MasterProbe>,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let members = Members::default();
        tokio::spawn(members::follow(members.clone(), config, masters, probe, shutdown));
        Arc::new(Self { config, members, connections: TaskTracker::new() })
    }

    /// Returns the masters and whether each is ready, for status output.
    pub fn health(&self) -> Vec<(SocketAddr, bool)> {
        self.members.health()
    }

    /// Accepts and serves connections within `limits` until shutdown; then waits up to a second for
    /// open connections to end. Each listener has its own limits, so that its clients cannot block
    /// those of another listener.
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
                    // The usual cause is a lack of file descriptors: pause, as accepting
                    // again at once would busy-loop.
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
        // Sends small requests at once instead of waiting for more data.
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

    /// Connects to a master: ready ones first, round-robin, then the others. The returned token is cancelled
    /// when that master is found dead.
    async fn connect(&self) -> io::Result<(TrackedStream, CancellationToken)> {
        let mut last = io::Error::new(io::ErrorKind::NotConnected, "no masters are known");
        for Candidate { address, alive, traffic } in self.members.in_turn() {
            match health::connect(address, self.config.connect_timeout).await {
                Ok(stream) => return Ok((TrackedStream { stream, traffic }, alive)),
                Err(error) => {
                    self.members.suspect(address);
                    last = error;
                }
            }
        }
        Err(last)
    }
}

/// Makes closing the socket send a TCP reset, which a client notices at once and cannot mistake for the
/// regular end of an answer.
fn reset(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "a connection is closed without a reset");
    }
}
