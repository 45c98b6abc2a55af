//! The interfaces between Ephor and the machine: clock, randomness, network, disk, blocking work, thread
//! priorities and shutdown. `master/node` and `worker/node` build one [`Env`] at start and pass it down;
//! the simulation builds another one over the same traits. Code that runs in the simulation takes time,
//! randomness, connections and files only from here.

mod blocking;
mod certificate;
mod clock;
pub mod counters;
mod disk;
mod expiring;
#[cfg(feature = "grpc")]
pub mod grpc;
mod network;
pub mod planted;
mod random;
mod runtime;
pub mod supervise;
mod tls;
mod verifiers;

use std::sync::Arc;

pub use blocking::Blocking;
pub use certificate::CertificateInfo;
pub use clock::{Clock, SystemClock};
pub use disk::{AppendFile, Disk, Space, SystemDisk};
pub use expiring::ExpiringStream;
pub use network::{ApiListener, BoxedStream, Connection, Listener, Network, PeerIdentity, Purpose, Stream};
pub use random::{Random, SystemRandom};
pub use runtime::{PriorityRuntime, ThreadPriority, raise_thread_priority};
pub use tls::{Error as TlsError, TlsMaterial, TlsNetwork};
pub use tokio_util::sync::CancellationToken;
pub use verifiers::{ClientVerifier, ServerVerifier};

/// Organization in the certificate subject of every master (and administrator
/// tool) that may speak Raft on the peer port.
pub const MASTERS_ORGANIZATION: &str = "system:ephor:masters";

/// Organization in the certificate subject of every node, as Kubernetes calls it.
pub const NODES_ORGANIZATION: &str = "system:nodes";
/// Organization in the certificate that an API server shows to the HTTPS servers of nodes. It grants
/// nothing else: whoever makes an API server connect elsewhere with it gains no rights there.
pub const KUBELET_CLIENTS_ORGANIZATION: &str = "system:kube-apiserver-kubelet";

/// A process's interfaces to the machine it runs on.
#[derive(Clone)]
pub struct Env {
    /// Wall clock and monotonic clock. To sleep, use `tokio::time`.
    pub clock: Arc<dyn Clock>,
    /// Random bytes, suitable for keys.
    pub random: Arc<dyn Random>,
    /// Authenticated connections between nodes (the peer port).
    pub network: Arc<dyn Network>,
    /// Files whose durability matters.
    pub disk: Arc<dyn Disk>,
    /// How blocking work runs.
    pub blocking: Blocking,
    /// Cancelled when the process should end.
    pub shutdown: CancellationToken,
}

impl Env {
    /// Makes the environment of the real machine, with `network` for the peer port (usually a
    /// [`TlsNetwork`]).
    pub fn production(network: Arc<dyn Network>, shutdown: CancellationToken) -> Self {
        Self {
            clock: Arc::new(SystemClock::new()),
            random: Arc::new(SystemRandom),
            network,
            disk: Arc::new(SystemDisk),
            blocking: Blocking::Threads,
            shutdown,
        }
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("shutdown", &self.shutdown.is_cancelled()).finish_non_exhaustive()
    }
}
