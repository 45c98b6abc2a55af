//! Builds and runs a worker. Order matters: first certificates, heartbeats and balancer (everything else
//! reaches the masters through them), then network, runtime, agent.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use proto_env::TlsNetwork;
use proto_env::supervise::{Panicked, catch, supervise};
use proto_wire::settings::ClusterSettings;
use rustls::pki_types::ServerName;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker_agent::{AgentConfig, CertificateEnds, NodeHealth};
use worker_network::{
    Balancer, BalancerConfig, DnsConfig, ListenerLimits, NetworkConfig, NodeNetwork, ReadyzProbe,
};
use worker_runtime::RuntimeConfig;

use crate::api_client;
use crate::config::{self, WorkerConfig};
use crate::credentials::{self, Master, NodeCredentials};
use crate::heartbeat::Heartbeat;
use crate::renewal::Renewal;
use crate::sandbox::PodSandboxes;
use crate::tls;

/// Reasons why a worker cannot run; each text is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The credentials cannot be obtained.
    #[error(transparent)]
    Credentials(#[from] credentials::Error),
    /// The certificates cannot be used for serving.
    #[error("certificates: {0}")]
    Tls(#[from] tls::Error),
    /// The peer network cannot be created.
    #[error("certificates: {0}")]
    PeerTls(#[from] proto_env::TlsError),
    /// The API client cannot be created.
    #[error("API client: {0}")]
    Client(String),
    /// A port is in use, or a directory cannot be created.
    #[error("{what}: {source}")]
    System {
        /// Action that failed.
        what: String,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The network cannot start.
    #[error("network: {0}")]
    Network(#[from] worker_network::network::Error),
    /// The runtime has failed.
    #[error("runtime: {0}")]
    Runtime(#[from] worker_runtime::ServeError),
    /// Containers left by a crash cannot be removed.
    #[error("runtime: {0}")]
    Cleanup(#[from] worker_runtime::CleanupError),
    /// The agent has failed.
    #[error("agent: {0}")]
    Agent(#[from] worker_agent::Error),
    /// The operators' port has failed.
    #[error(transparent)]
    Images(#[from] crate::images::Error),
    /// A part the worker cannot do without has panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// Runs a worker until `shutdown` or until a part fails. Containers keep running.
pub async fn run(config: WorkerConfig, shutdown: CancellationToken) -> Result<(), Error> {
    config.validate()?;
    let credentials = NodeCredentials::obtain(&config).await?;
    tracing::info!(name = config.name, cluster = credentials.cluster_id, "this worker belongs to a cluster");
    let masters = watch::Sender::new(credentials.masters.clone());
    remember_masters(&config, &credentials, masters.subscribe(), shutdown.clone());
    let apis = api_addresses(masters.subscribe(), shutdown.clone());

    let mut vital = JoinSet::new();
    let balancer = start_balancer(&config, &credentials, apis.clone(), &mut vital, shutdown.clone()).await?;
    let (client, api) =
        api_client::renewable(config.balancer_port, &credentials.client).await.map_err(Error::Client)?;
    let peer = Arc::new(TlsNetwork::new(&credentials.client)?);
    let serving = watch::Sender::new(tls::serving(&credentials.serving)?);
    let settings = credentials.settings.clone();
    let ends = watch::Sender::new(credentials.ends());
    let health = watch::Sender::new(NodeHealth::default());
    let beaten = health.subscribe();
    let parts = BuildInputs {
        config: &config,
        settings: &settings,
        client: client.clone(),
        peer: peer.clone(),
        serving: serving.subscribe(),
        health,
        certificates: ends.subscribe(),
    };
    let certificates = ends.subscribe();
    // Renewal starts before the other parts: until it has run, their certificates may be expired.
    let renewal = Arc::new(Renewal {
        node: config.name.clone(),
        data_dir: config.data_dir.clone(),
        credentials: Mutex::new(credentials),
        masters: masters.subscribe(),
        network: peer.clone(),
        serving,
        api,
        ends,
    });
    let until = shutdown.clone();
    tokio::spawn(supervise("certificate-renewal", move || renewal.clone().run(until.clone())));
    let network = NodeNetwork::start(
        network_config(&config, &settings)?,
        client.clone(),
        apis,
        Some(balancer),
        shutdown.clone(),
    )
    .await?;
    let node = config.name.clone();
    let heartbeat = Heartbeat { node, network: peer, health: beaten, certificates, masters };
    vital.spawn(catch("heartbeat", heartbeat.run(shutdown.clone())));

    let result = tokio::select! {
        biased;
        result = parts.run(&network, shutdown.clone()) => result,
        panicked = first_panic(vital) => Err(panicked.into()),
    };
    shutdown.cancel();
    network.stopped().await;
    result
}

/// Waits for the first panic in one of the tasks; never returns if there is none.
async fn first_panic(mut tasks: JoinSet<Result<(), Panicked>>) -> Panicked {
    loop {
        match tasks.join_next().await {
            Some(Ok(Err(panicked))) => return panicked,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// Inputs for building the runtime, the operators' port and the agent.
struct BuildInputs<'a> {
    config: &'a WorkerConfig,
    settings: &'a ClusterSettings,
    client: kube::Client,
    peer: Arc<TlsNetwork>,
    serving: watch::Receiver<Arc<rustls::ServerConfig>>,
    health: watch::Sender<NodeHealth>,
    certificates: watch::Receiver<CertificateEnds>,
}

impl BuildInputs<'_> {
    /// Runs the runtime, the operators' port and the agent until shutdown, or until one of them fails.
    async fn run(self, network: &NodeNetwork, shutdown: CancellationToken) -> Result<(), Error> {
        let config = self.config;
        let runtime = async {
            if config.cri_socket.is_some() {
                shutdown.cancelled().await;
                return Ok(());
            }
            let pods = Arc::new(PodSandboxes(network.pod_network().clone()));
            worker_runtime::serve(runtime_config(config)?, pods, shutdown.clone()).await.map_err(Error::from)
        };
        let operators = async {
            let address = SocketAddr::new(config.address, config.admin_port).to_string();
            Ok(crate::images::serve(self.peer, &address, config.cri_socket(), shutdown.clone()).await?)
        };
        let mut agent = agent_config(config, self.settings, self.serving);
        agent.health = self.health;
        agent.certificates = self.certificates;
        let agent =
            async { worker_agent::run(agent, self.client, shutdown.clone()).await.map_err(Error::from) };
        tokio::try_join!(runtime, operators, agent).map(drop)
    }
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

fn agent_config(
    config: &WorkerConfig,
    settings: &ClusterSettings,
    serving: watch::Receiver<Arc<rustls::ServerConfig>>,
) -> AgentConfig {
    let mut agent = AgentConfig::new(
        &config.name,
        config.address,
        config.cri_socket(),
        config.data_dir.join("agent"),
        serving,
    );
    agent.cluster_dns = vec![settings.dns_address.into()];
    agent.cluster_domain = settings.cluster_domain.clone();
    agent.max_pods = config.max_pods;
    agent.listen = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), config.node_port);
    agent.cgroup_root = config.cgroup_root.to_string_lossy().into_owned();
    agent.labels = config.labels.clone();
    agent
}

async fn start_balancer(
    config: &WorkerConfig,
    credentials: &NodeCredentials,
    masters: watch::Receiver<Vec<SocketAddr>>,
    vital: &mut JoinSet<Result<(), Panicked>>,
    shutdown: CancellationToken,
) -> Result<Arc<Balancer>, Error> {
    let probe = ReadyzProbe::new(
        tls::trusting(&credentials.client)?,
        ServerName::try_from("kubernetes").map_err(tls::Error::from)?,
    );
    let balancer = Balancer::start(BalancerConfig::default(), masters, Arc::new(probe), shutdown.clone());
    let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), config.balancer_port);
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| Error::System { what: format!("listening on {address}"), source })?;
    vital.spawn(catch("balancer", balancer.clone().serve(listener, ListenerLimits::HOST, shutdown)));
    Ok(balancer)
}

/// Keeps the parsed API addresses of the masters up to date; addresses that do not parse are left out.
fn api_addresses(
    masters: watch::Receiver<Vec<Master>>,
    shutdown: CancellationToken,
) -> watch::Receiver<Vec<SocketAddr>> {
    let parse = |masters: &[Master]| masters.iter().filter_map(|m| m.api.parse().ok()).collect::<Vec<_>>();
    let (sender, receiver) = watch::channel(parse(&masters.borrow()));
    tokio::spawn(supervise("api-addresses", move || {
        let (mut masters, sender, shutdown) = (masters.clone(), sender.clone(), shutdown.clone());
        async move {
            loop {
                let addresses = parse(&masters.borrow_and_update());
                sender.send_replace(addresses);
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    changed = masters.changed() => if changed.is_err() { return },
                }
            }
        }
    }));
    receiver
}

/// Writes each change of the masters to disk, so that a restarted worker finds them even if all have moved.
fn remember_masters(
    config: &WorkerConfig,
    credentials: &NodeCredentials,
    masters: watch::Receiver<Vec<Master>>,
    shutdown: CancellationToken,
) {
    let (credentials, data_dir) = (credentials.clone(), config.data_dir.clone());
    tokio::spawn(supervise("remembered-masters", move || {
        let (mut credentials, data_dir) = (credentials.clone(), data_dir.clone());
        let (mut masters, shutdown) = (masters.clone(), shutdown.clone());
        async move {
            loop {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    changed = masters.changed() => if changed.is_err() { return },
                }
                credentials.masters.clone_from(&masters.borrow_and_update());
                if let Err(error) = credentials.store_record(&data_dir) {
                    tracing::warn!(%error, "the list of masters could not be stored");
                }
            }
        }
    }));
}

/// Removes everything a worker left on this host, also after a crash.
pub async fn cleanup(config: &WorkerConfig) -> Result<(), Error> {
    worker_runtime::remove_everything(&runtime_config(config)?).await?;
    let network = NetworkConfig::new(&config.name, Ipv4Addr::LOCALHOST, config.data_dir.join("network"));
    worker_network::cleanup(&network).await?;
    Ok(())
}
