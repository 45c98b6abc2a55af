//! Puts the node's network together: follows the API and updates overlay, pod network, service routing, DNS
//! and the pods' connection to the masters accordingly. Started by `worker/node` and `master/node`.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use ipnet::Ipv4Net;
use kube::Client;
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    balancer::{Balancer, ListenerLimits},
    cluster_state::{ClusterState, Concern, ObjectKey},
    config::NetworkConfig,
    dns, netlink,
    netlink::Netlink,
    nft,
    overlay::{self, Overlay, overlay_address, underlay_mtu},
    pod::{self, PodNetwork, PodParameters},
    proxy::{self, EndpointAddress, Overrides, ProxyStats, ProxyStatsSnapshot, RuleParameters},
    sysctl, watch as follow,
};

/// Interval at which the overlay is compared with the kernel even if nothing changed.
const AUDIT_INTERVAL: Duration = Duration::from_secs(30);
/// Pause before setting up the overlay or DNS is retried.
const RETRY: Duration = Duration::from_secs(1);
/// Namespace and name of the API server's Service.
const KUBERNETES: (&str, &str) = ("default", "kubernetes");

/// Why the network could not be started or taken down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pod network failed.
    #[error(transparent)]
    Pod(#[from] pod::Error),
    /// The overlay failed.
    #[error(transparent)]
    Overlay(#[from] overlay::Error),
    /// The DNS server failed.
    #[error(transparent)]
    Dns(#[from] dns::Error),
    /// A request about interfaces or routes failed.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// Running `nft` failed.
    #[error(transparent)]
    Nft(#[from] nft::Error),
    /// Changing a kernel setting failed.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
}

/// A node's running network. Stops with the `shutdown` token it was started with; its kernel state stays, so
/// that pods keep their connections over a restart. [`cleanup`] removes that state.
#[derive(Debug)]
pub struct NodeNetwork {
    pods: Arc<PodNetwork>,
    state: ClusterState,
    proxy: Arc<ProxyStats>,
    tasks: TaskTracker,
}

impl NodeNetwork {
    /// Starts the network. `masters` are the API addresses of all masters, as `balancer` follows them; with a
    /// balancer, pods reach `kubernetes.default` through it. The API need not be reachable yet.
    pub async fn start(
        config: NetworkConfig,
        client: Client,
        masters: watch::Receiver<Vec<SocketAddr>>,
        balancer: Option<Arc<Balancer>>,
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, Error> {
        sysctl::set("net/ipv4/ip_forward", "1")?;
        let pods = Arc::new(PodNetwork::open(&config.state_dir)?);
        let state = ClusterState::default();
        let stats = Arc::new(ProxyStats::default());
        let tasks = TaskTracker::new();
        let overrides = watch::Sender::new(Overrides::new());

        tasks.spawn(follow::run(client, state.clone(), shutdown.clone()));
        let parameters = RuleParameters {
            cluster_cidr: config.cluster_cidr,
            service_cidr: config.service_cidr,
            served_here: config.dns.iter().map(|dns| dns.address).collect(),
        };
        tasks.spawn(proxy::run(
            state.clone(),
            config.node_name.clone(),
            parameters,
            overrides.subscribe(),
            Duration::from_millis(config.proxy_min_interval_ms),
            stats.clone(),
            shutdown.clone(),
        ));
        if let Some(settings) = config.dns.clone() {
            let reverse = vec![config.service_cidr, config.cluster_cidr];
            let zone = dns::Zone::new(&settings.domain, reverse)?;
            tasks.spawn(keep_dns(settings, zone, state.clone(), shutdown.clone()));
        }
        let keeper = NetworkUpdater {
            overlay: Overlay::new(config.overlay.clone(), config.node_ip)?,
            config,
            state: state.clone(),
            pods: pods.clone(),
            balancer,
            overrides,
            serving: None,
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };
        tasks.spawn(async move {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = keeper.run(masters) => {}
            }
        });
        tasks.close();
        Ok(Arc::new(Self { pods, state, proxy: stats, tasks }))
    }

    /// Returns the pod network, to which the container runtime attaches pods.
    pub fn pod_network(&self) -> &Arc<PodNetwork> {
        &self.pods
    }

    /// Returns this node's copy of Services, endpoints and Nodes.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// Returns the counters of the service proxy.
    pub fn proxy_stats(&self) -> ProxyStatsSnapshot {
        self.proxy.snapshot()
    }

    /// Waits until all tasks have ended after shutdown.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

async fn keep_dns(
    settings: crate::config::DnsConfig,
    zone: dns::Zone,
    state: ClusterState,
    shutdown: CancellationToken,
) {
    while !shutdown.is_cancelled() {
        match dns::run(&settings, zone.clone(), state.clone(), shutdown.clone()).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "cluster DNS does not run; trying again"),
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = sleep(RETRY) => {}
        }
    }
}

/// Keeps the overlay and everything that depends on the node's own podCIDR up to date.
struct NetworkUpdater {
    config: NetworkConfig,
    overlay: Overlay,
    state: ClusterState,
    pods: Arc<PodNetwork>,
    balancer: Option<Arc<Balancer>>,
    overrides: watch::Sender<Overrides>,
    /// Address on which the balancer serves pods, and the token that stops it; `None`
    /// while it does not serve pods.
    serving: Option<(SocketAddr, CancellationToken)>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl NetworkUpdater {
    async fn run(mut self, mut masters: watch::Receiver<Vec<SocketAddr>>) {
        let mut changes = self.state.observe(Concern::Nodes);
        let mut reported = Vec::new();
        let mut applied: Option<(Vec<overlay::Peer>, Option<Ipv4Net>)> = None;
        let mut masters_open = true;
        loop {
            changes.borrow_and_update();
            let current = masters.borrow_and_update().clone();
            let (peers, clashing, pod_cidr) = self.view(&current);
            if clashing != reported {
                if !clashing.is_empty() {
                    tracing::error!(?clashing, "hosts are left out of the overlay: endpoint addresses clash");
                }
                reported = clashing;
            }
            if applied.as_ref() != Some(&(peers.clone(), pod_cidr)) {
                match self.apply(&peers, pod_cidr).await {
                    Ok(()) => {
                        tracing::info!(peers = peers.len(), ?pod_cidr, "overlay is up to date");
                        applied = Some((peers, pod_cidr));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the overlay could not be set up; trying again");
                        applied = None;
                        sleep(RETRY).await;
                        continue;
                    }
                }
            }
            let changed = async {
                tokio::select! {
                    biased;
                    result = changes.changed() => drop(result),
                    result = masters.changed(), if masters_open => masters_open = result.is_ok(),
                }
            };
            if timeout(AUDIT_INTERVAL, changed).await.is_err() {
                applied = None;
            }
        }
    }

    /// Returns the peers, the hosts left out because their endpoint addresses clash, and this node's podCIDR:
    /// from its Node object or, while that is not known, from the node's last run.
    fn view(&self, masters: &[SocketAddr]) -> (Vec<overlay::Peer>, Vec<std::net::Ipv4Addr>, Option<Ipv4Net>) {
        let content = self.state.read();
        let NetworkConfig { node_name, node_ip, pods, .. } = &self.config;
        let (peers, clashing) = overlay::peers(node_name, *node_ip, &content.nodes, masters);
        let own = content.nodes.get(node_name.as_str()).and_then(|node| node.pod_cidr);
        let known = self.pods.ready().borrow().as_ref().map(|parameters| parameters.pod_cidr);
        (peers, clashing, own.or(known).filter(|_| *pods))
    }

    async fn apply(&mut self, peers: &[overlay::Peer], pod_cidr: Option<Ipv4Net>) -> Result<(), Error> {
        let config = &self.config;
        let mtu = match config.overlay.mtu {
            Some(mtu) => mtu,
            None => underlay_mtu(config.node_ip).await?,
        };
        let index = self.overlay.ensure_device(mtu).await?;
        let plan = overlay::plan(index, config.node_ip, pod_cidr, config.service_cidr, peers);
        self.overlay.apply(index, &plan).await?;
        let gateway = overlay_address(config.node_ip, pod_cidr);
        let parameters = PodParameters {
            pod_cidr: pod_cidr.unwrap_or(overlay::host(gateway)),
            cluster_cidr: config.cluster_cidr,
            gateway,
            mtu,
            overlay_device: config.overlay.device.clone(),
            protected_addresses: config.dns.iter().map(|dns| dns.address).collect(),
            protected_loopback_ports: config.agent_api_port.into_iter().collect(),
        };
        match (config.pods, pod_cidr) {
            (true, Some(_)) => {
                self.pods.configure(parameters).await?;
                self.serve_pods(gateway).await;
            }
            // A worker without a podCIDR has no pods to masquerade yet.
            (true, None) => {}
            (false, _) => pod::configure_host(&parameters).await?,
        }
        Ok(())
    }

    /// Starts serving this node's pods through the balancer and routes `kubernetes.default` to it.
    async fn serve_pods(&mut self, gateway: std::net::Ipv4Addr) {
        let Some(balancer) = &self.balancer else { return };
        let address = SocketAddr::from((gateway, self.config.api_port));
        if self.serving.as_ref().is_some_and(|(serving, _)| *serving == address) {
            return;
        }
        if let Some((_, stop)) = self.serving.take() {
            stop.cancel();
        }
        match TcpListener::bind(address).await {
            Ok(listener) => {
                let stop = self.shutdown.child_token();
                self.tasks.spawn(balancer.clone().serve(listener, ListenerLimits::PODS, stop.clone()));
                self.serving = Some((address, stop));
                let service = ObjectKey::new(KUBERNETES.0, KUBERNETES.1);
                let backend = EndpointAddress { ip: gateway, port: self.config.api_port };
                self.overrides.send_replace(BTreeMap::from([(service, vec![backend])]));
            }
            // Pods then connect to the masters directly, with a slower failover.
            Err(error) => tracing::warn!(%address, %error, "the balancer cannot serve pods"),
        }
    }
}

/// Removes the kernel state of a network, also of one that crashed: devices, routes, tables, the DNS address.
/// Removes the address reservations too; the sandboxes must be gone. Idempotent.
pub async fn cleanup(config: &NetworkConfig) -> Result<(), Error> {
    nft::delete_tables(&[proxy::TABLE, pod::TABLE]).await?;
    let netlink = Netlink::open()?;
    for route in netlink.own_routes().await? {
        netlink.delete_route(&route).await?;
    }
    for link in netlink.links().await? {
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            rtnetlink::packet_route::link::LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        });
        if let Some(name) = name.filter(|name| pod::is_pod_interface(name)) {
            netlink.delete_link(name).await?;
        }
    }
    netlink.delete_link(&config.overlay.device).await?;
    if let (Some(dns), Some(lo)) = (&config.dns, netlink.link_index("lo").await?) {
        for (address, message) in netlink.addresses(lo).await? {
            if address == dns.address {
                netlink.delete_address(message).await?;
            }
        }
    }
    remove_state(&config.state_dir)
        .map_err(|source| Error::Pod(pod::Error::State { path: config.state_dir.clone(), source }))
}

fn remove_state(dir: &Path) -> std::io::Result<()> {
    for result in
        [std::fs::remove_dir_all(dir.join("addresses")), std::fs::remove_file(dir.join("pod-network.json"))]
    {
        match result {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
