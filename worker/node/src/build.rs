//! Puts a worker together. Order matters: identity, beats and balancer first
//! (everything else reaches masters through them), then network, runtime, agent.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use kube::config::{KubeConfigOptions, Kubeconfig};
use proto_env::{Network as PeerNetwork, TlsNetwork};
use proto_wire::settings::ClusterSettings;
use rustls::pki_types::ServerName;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use worker_agent::{AgentConfig, NodeHealth};
use worker_network::{
    Balancer, BalancerConfig, DnsConfig, ListenerLimits, Network, NetworkConfig, ReadyzProbe,
};
use worker_runtime::RuntimeConfig;

use crate::config::{self, WorkerConfig};
use crate::heartbeat::Heartbeat;
use crate::identity::{self, Identity, Master};
use crate::sandbox::PodSandboxes;
use crate::tls;

/// Why a worker cannot run; each text is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// No identity.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// Certificates do not fit.
    #[error("certificates: {0}")]
    Tls(#[from] tls::Error),
    /// The peer network cannot be made.
    #[error("certificates: {0}")]
    PeerTls(#[from] proto_env::TlsError),
    /// The API client cannot be made.
    #[error("API client: {0}")]
    Client(String),
    /// A port is taken, or a directory cannot be made.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The network cannot start.
    #[error("network: {0}")]
    Network(#[from] worker_network::network::Error),
    /// The runtime has ended.
    #[error("runtime: {0}")]
    Runtime(#[from] worker_runtime::ServeError),
    /// What a crash left could not be removed.
    #[error("runtime: {0}")]
    Reap(#[from] worker_runtime::ReapError),
    /// The agent has ended.
    #[error("agent: {0}")]
    Agent(#[from] worker_agent::Error),
    /// The operators' port has ended.
    #[error(transparent)]
    Images(#[from] crate::images::Error),
}

/// Runs a worker until `shutdown` or until a part fails. Containers stay.
pub async fn run(config: WorkerConfig, shutdown: CancellationToken) -> Result<(), Error> {
    config.validate()?;
    let identity = Identity::obtain(&config).await?;
    tracing::info!(name = config.name, cluster = identity.cluster_id, "this worker belongs to a cluster");
    let masters = watch::Sender::new(identity.masters.clone());
    remember_masters(&config, &identity, masters.subscribe(), shutdown.clone());
    let apis = api_addresses(masters.subscribe(), shutdown.clone());

    let balancer = start_balancer(&config, &identity, apis.clone(), shutdown.clone()).await?;
    let client = api_client(&config, &identity).await?;
    let peer: Arc<dyn PeerNetwork> = Arc::new(TlsNetwork::new(&identity.client)?);
    let network = Network::start(
        network_config(&config, &identity.settings)?,
        client.clone(),
        apis,
        Some(balancer),
        shutdown.clone(),
    )
    .await?;
    let health = watch::Sender::new(NodeHealth::default());
    let heartbeat =
        Heartbeat { node: config.name.clone(), network: peer, health: health.subscribe(), masters };
    tokio::spawn(heartbeat.run(shutdown.clone()));

    let result = run_parts(&config, &identity, client, &network, health, shutdown.clone()).await;
    shutdown.cancel();
    network.stopped().await;
    result
}

/// Runtime, operators' port and agent: all run until shutdown, and the worker
/// ends when one of them fails.
async fn run_parts(
    config: &WorkerConfig,
    identity: &Identity,
    client: kube::Client,
    network: &Network,
    health: watch::Sender<NodeHealth>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let runtime = async {
        if config.cri_socket.is_some() {
            shutdown.cancelled().await;
            return Ok(());
        }
        let pods = Arc::new(PodSandboxes(network.pod_network().clone()));
        worker_runtime::serve(runtime_config(config)?, pods, shutdown.clone()).await.map_err(Error::from)
    };
    let operators = async {
        let serving: Arc<dyn PeerNetwork> = Arc::new(TlsNetwork::new(&identity.serving)?);
        let address = SocketAddr::new(config.address, config.admin_port).to_string();
        Ok(crate::images::serve(serving, &address, config.cri_socket(), shutdown.clone()).await?)
    };
    let agent = async {
        let mut agent = agent_config(config, identity)?;
        agent.health = health;
        worker_agent::run(agent, client, shutdown.clone()).await.map_err(Error::from)
    };
    tokio::try_join!(runtime, operators, agent).map(drop)
}

fn runtime_config(config: &WorkerConfig) -> Result<RuntimeConfig, Error> {
    let exe = std::env::current_exe()
        .map_err(|source| Error::System { what: "finding this program".into(), source })?;
    let mut runtime = RuntimeConfig::new(
        config.data_dir.join("runtime"),
        config.run_dir.join("runtime"),
        config.cri_socket(),
        config.cgroup_root.clone(),
        exe,
    );
    runtime.registries.insecure = config.insecure_registries.clone();
    Ok(runtime)
}

fn network_config(config: &WorkerConfig, settings: &ClusterSettings) -> Result<NetworkConfig, Error> {
    let mut network = NetworkConfig::new(&config.name, config.ipv4()?, config.data_dir.join("network"));
    network.cluster_cidr = settings.pod_cidr;
    network.service_cidr = settings.service_cidr;
    network.agent_api_port = Some(config.balancer_port);
    network.overlay.vni = settings.vxlan_id;
    network.overlay.port = settings.vxlan_port;
    network.dns = Some(DnsConfig {
        address: settings.dns_address,
        domain: settings.cluster_domain.clone(),
        ..DnsConfig::default()
    });
    Ok(network)
}

fn agent_config(config: &WorkerConfig, identity: &Identity) -> Result<AgentConfig, Error> {
    let serving = tls::serving(&identity.serving)?;
    let mut agent = AgentConfig::new(
        &config.name,
        config.address,
        config.cri_socket(),
        config.data_dir.join("agent"),
        watch::Sender::new(serving).subscribe(),
    );
    agent.cluster_dns = vec![identity.settings.dns_address.into()];
    agent.cluster_domain = identity.settings.cluster_domain.clone();
    agent.max_pods = config.max_pods;
    agent.listen = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), config.node_port);
    agent.cgroup_root = config.cgroup_root.to_string_lossy().into_owned();
    agent.labels = config.labels.clone();
    Ok(agent)
}

/// The agent's and the network's way to the masters: through the local balancer.
async fn api_client(config: &WorkerConfig, identity: &Identity) -> Result<kube::Client, Error> {
    let text = tls::kubeconfig(&format!("https://127.0.0.1:{}", config.balancer_port), &identity.client);
    let failed = |e: &dyn std::fmt::Display| Error::Client(e.to_string());
    let file = Kubeconfig::from_yaml(&text).map_err(|e| failed(&e))?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    kube::Client::try_from(config.map_err(|e| failed(&e))?).map_err(|e| failed(&e))
}

async fn start_balancer(
    config: &WorkerConfig,
    identity: &Identity,
    masters: watch::Receiver<Vec<SocketAddr>>,
    shutdown: CancellationToken,
) -> Result<Arc<Balancer>, Error> {
    let probe = ReadyzProbe::new(
        tls::trusting(&identity.client)?,
        ServerName::try_from("kubernetes").map_err(tls::Error::from)?,
    );
    let balancer = Balancer::start(BalancerConfig::default(), masters, Arc::new(probe), shutdown.clone());
    let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), config.balancer_port);
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| Error::System { what: format!("listening on {address}"), source })?;
    tokio::spawn(balancer.clone().serve(listener, ListenerLimits::HOST, shutdown));
    Ok(balancer)
}

/// The API addresses of the masters, parsed once for everybody.
fn api_addresses(
    mut masters: watch::Receiver<Vec<Master>>,
    shutdown: CancellationToken,
) -> watch::Receiver<Vec<SocketAddr>> {
    let parse = |masters: &[Master]| masters.iter().filter_map(|m| m.api.parse().ok()).collect::<Vec<_>>();
    let (sender, receiver) = watch::channel(parse(&masters.borrow_and_update()));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                changed = masters.changed() => if changed.is_err() { return },
            }
            let addresses = parse(&masters.borrow_and_update());
            sender.send_replace(addresses);
        }
    });
    receiver
}

/// Writes changed members to disk, so that a restart finds them when all have moved.
fn remember_masters(
    config: &WorkerConfig,
    identity: &Identity,
    mut masters: watch::Receiver<Vec<Master>>,
    shutdown: CancellationToken,
) {
    let (mut identity, data_dir) = (identity.clone(), config.data_dir.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                changed = masters.changed() => if changed.is_err() { return },
            }
            identity.masters.clone_from(&masters.borrow_and_update());
            if let Err(error) = identity.store(&data_dir) {
                tracing::warn!(%error, "the masters could not be written down");
            }
        }
    });
}

/// Removes everything a worker left on this machine, also after a crash.
pub async fn cleanup(config: &WorkerConfig) -> Result<(), Error> {
    worker_runtime::reap_all(&runtime_config(config)?).await?;
    let network = NetworkConfig::new(&config.name, Ipv4Addr::LOCALHOST, config.data_dir.join("network"));
    worker_network::cleanup(&network).await?;
    Ok(())
}
