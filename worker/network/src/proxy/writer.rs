//! Applies routing to the kernel whenever the cluster's state changes: at once if the last write is long
//! enough ago, else once the configured interval has passed, so that a burst becomes one transaction.
//! Remembers what it wrote last, to write only the difference; when the kernel's content is uncertain it
//! rewrites the table in one transaction. While the API is unreachable the kernel keeps the last
//! routing. Started by `network.rs`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Error, Overrides, RoutedPort, RuleParameters, Ruleset, TABLE,
    conntrack::{self, UdpRouting},
    difference, replacement, route, ruleset,
};
use crate::{
    cluster_state::{ClusterState, Concern},
    nft,
};

/// Interval at which the writer checks that its table still exists.
const AUDIT_INTERVAL: Duration = Duration::from_secs(30);
/// First and longest pause before a refused write is retried.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Counters of the service proxy, for metrics. All durations are in microseconds.
#[derive(Debug, Default)]
pub struct ProxyStats {
    syncs: AtomicU64,
    failures: AtomicU64,
    rebuilds: AtomicU64,
    last_sync: AtomicU64,
    longest_sync: AtomicU64,
    service_ports: AtomicU64,
    endpoints: AtomicU64,
}

/// Values of [`ProxyStats`] at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyStatsSnapshot {
    /// Number of transactions applied.
    pub syncs: u64,
    /// Number of transactions refused.
    pub failures: u64,
    /// Number of applied transactions that rewrote the whole table.
    pub rebuilds: u64,
    /// Duration of the last write, from the start of the computation until the kernel has applied it.
    pub last_sync_micros: u64,
    /// Duration of the longest write.
    pub longest_sync_micros: u64,
    /// Number of service ports routed.
    pub service_ports: u64,
    /// Number of their endpoints.
    pub endpoints: u64,
}

impl ProxyStats {
    /// Returns the current values.
    pub fn snapshot(&self) -> ProxyStatsSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ProxyStatsSnapshot {
            syncs: read(&self.syncs),
            failures: read(&self.failures),
            rebuilds: read(&self.rebuilds),
            last_sync_micros: read(&self.last_sync),
            longest_sync_micros: read(&self.longest_sync),
            service_ports: read(&self.service_ports),
            endpoints: read(&self.endpoints),
        }
    }

    fn synced(&self, took: Duration, rebuilt: bool, routed: &[RoutedPort]) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let endpoints: usize = routed.iter().map(|port| port.cluster.len()).sum();
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.rebuilds.fetch_add(u64::from(rebuilt), Ordering::Relaxed);
        self.last_sync.store(micros, Ordering::Relaxed);
        self.longest_sync.fetch_max(micros, Ordering::Relaxed);
        self.service_ports.store(routed.len() as u64, Ordering::Relaxed);
        self.endpoints.store(endpoints as u64, Ordering::Relaxed);
    }
}

/// Keeps the kernel's service routing up to date until shutdown; the routing then stays in the kernel.
/// `overrides` are the endpoints that replace a Service's own on this node.
pub async fn run(
    state: ClusterState,
    node: String,
    parameters: RuleParameters,
    overrides: watch::Receiver<Overrides>,
    min_interval: Duration,
    stats: Arc<ProxyStats>,
    shutdown: CancellationToken,
) {
    let writer = Writer { state, node, parameters, stats, applied: None, udp: UdpRouting::default() };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        () = writer.run(overrides, min_interval) => {}
    }
}

struct Writer {
    state: ClusterState,
    node: String,
    parameters: RuleParameters,
    stats: Arc<ProxyStats>,
    /// Ruleset that the kernel holds; `None` if that is not known.
    applied: Option<Ruleset>,
    udp: UdpRouting,
}

impl Writer {
    async fn run(mut self, mut overrides: watch::Receiver<Overrides>, min_interval: Duration) {
        let mut changes = self.state.observe(Concern::Routing);
        let mut retry = RETRY.0;
        loop {
            let started = Instant::now();
            changes.borrow_and_update();
            let current = overrides.borrow_and_update().clone();
            let pause = match self.sync(&current).await {
                Ok(()) => {
                    retry = RETRY.0;
                    min_interval
                }
                Err(error) => {
                    tracing::warn!(%error, "service routing was not applied; trying again");
                    self.stats.failures.fetch_add(1, Ordering::Relaxed);
                    self.applied = None;
                    let pause = retry;
                    retry = (retry * 2).min(RETRY.1);
                    sleep_until(started + pause).await;
                    continue;
                }
            };
            sleep_until(started + pause).await;
            let changed = async {
                tokio::select! {
                    biased;
                    result = changes.changed() => result.is_ok(),
                    result = overrides.changed() => result.is_ok(),
                }
            };
            match timeout(AUDIT_INTERVAL, changed).await {
                Ok(true) => {}
                // The senders are gone: the network is being taken down.
                Ok(false) => return,
                Err(_) => self.audit().await,
            }
        }
    }

    async fn sync(&mut self, overrides: &Overrides) -> Result<(), Error> {
        let started = Instant::now();
        let routed = {
            let content = self.state.read();
            if !content.routable() {
                return Ok(());
            }
            route(&content, &self.node, &self.parameters.served_here, overrides)
        };
        let wanted = ruleset(&self.parameters, &routed);
        let (script, cleanup, rebuilt) = match &self.applied {
            Some(applied) => {
                let diff = difference(applied, &wanted);
                (diff.script, diff.cleanup, false)
            }
            None => (replacement(&wanted), String::new(), true),
        };
        if script.is_empty() && cleanup.is_empty() {
            return Ok(());
        }
        if !script.is_empty() {
            nft::apply(&script).await?;
        }
        self.stats.synced(started.elapsed(), rebuilt, &routed);
        tracing::debug!(services = routed.len(), rebuilt, took = ?started.elapsed(), "service routing applied");
        if !cleanup.is_empty() {
            nft::apply(&cleanup).await?;
        }
        self.applied = Some(wanted);
        self.end_stale_flows(&routed).await;
        Ok(())
    }

    async fn end_stale_flows(&mut self, routed: &[RoutedPort]) {
        let udp = UdpRouting::of(routed);
        if udp == self.udp {
            return;
        }
        self.udp = udp.clone();
        match tokio::task::spawn_blocking(move || conntrack::end_stale_flows(&udp)).await {
            Ok(Ok(0)) => {}
            Ok(Ok(ended)) => tracing::debug!(ended, "ended UDP flows to endpoints that are gone"),
            Ok(Err(error)) => tracing::warn!(%error, "stale UDP flows could not be ended"),
            Err(error) => tracing::warn!(%error, "stale UDP flows could not be ended"),
        }
    }

    /// Checks that the table still exists, as another program may have flushed all of nftables.
    async fn audit(&mut self) {
        match nft::table_exists(TABLE).await {
            Ok(true) => {}
            Ok(false) => {
                if self.applied.take().is_some() {
                    tracing::warn!("the service routing table is gone; writing it again");
                }
            }
            Err(error) => tracing::warn!(%error, "the service routing table could not be checked"),
        }
    }
}
