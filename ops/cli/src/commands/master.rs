//! `ephor master`: builds the configuration and runs a master until a stop signal.
//! The master's own overlay and service proxy are started here, since only this
//! crate knows both the master's and the worker's crates.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use ipnet::Ipv4Net;
use master_node::config::MasterConfig;
use master_node::{Master, Objects};
use proto_env::{Env, TlsNetwork};
use tokio_util::sync::CancellationToken;
use worker_network::{NetworkConfig, NodeNetwork};

use crate::config_file::{self, set};
use crate::free_space;
use crate::logging::{self, LogFormat};
use crate::signals;

/// Flags of `ephor master`; see [`MasterConfig`] for what they mean.
#[derive(Debug, Args)]
pub struct MasterArgs {
    /// Path of a YAML configuration file; flags override its values
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the effective configuration as YAML and exit
    #[arg(long)]
    print_config: bool,
    /// Format of log lines
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Create a new cluster in an empty data directory and exit; needed once, before the first start
    #[arg(long, conflicts_with = "join")]
    init: bool,
    /// Peer addresses (port 6444 by default) of masters of the cluster to join, separated by commas and tried in order
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    join: Option<Vec<String>>,
    /// Join token, as printed by `ephor token create --role master`
    #[arg(long, env = "EPHOR_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Name or id of the master that this one replaces once it has caught up; requires --join
    #[arg(long, value_name = "NAME", requires = "join")]
    replace: Option<String>,
    /// Current peer addresses of other masters whose addresses have changed; one reachable master is enough
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    peers: Vec<String>,
    /// Duration for which an Event is kept after its last write, such as 1h; 0s keeps Events for ever [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    event_ttl: Option<Duration>,
    /// Duration of silence after which a master is replaced by a learner; 0s never replaces [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    replace_dead_after: Option<Duration>,
    /// Duration of silence after which a learner is removed from the cluster; 0s never removes [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    learner_expiry: Option<Duration>,
    /// Intended number of masters of the cluster: 1, 3, 5 or 7
    #[arg(long)]
    masters: Option<u32>,
    /// Name of this master [default: the hostname]
    #[arg(long)]
    name: Option<String>,
    /// Directory of the Raft log, the objects and the keys [default: /var/lib/ephor/master]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// IP address on which the servers listen [default: 0.0.0.0]
    #[arg(long)]
    bind_address: Option<IpAddr>,
    /// IP address at which other machines reach this master; required
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// Port of the Kubernetes API [default: 6443]
    #[arg(long)]
    api_port: Option<u16>,
    /// Port of Raft, joining and node heartbeats [default: 6444]
    #[arg(long)]
    peer_port: Option<u16>,
    /// Space to keep free on the disk of the data directory, in MiB [default: 256, or 5 % of the disk if that is less]
    #[arg(long, value_name = "MIB")]
    disk_reserve_mib: Option<u64>,
    /// Size of the Raft log, in MiB, at which a snapshot is taken and the log is purged [default: 256]
    #[arg(long, value_name = "MIB")]
    log_mib: Option<u64>,
    /// Number of log entries between two snapshots [default: 20000]
    #[arg(long, value_name = "ENTRIES")]
    snapshot_count: Option<u64>,
    /// Lifetime of the certificates of masters and nodes; must be the same on all masters [default: 365d]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    certificate_lifetime: Option<Duration>,
    /// Maximum lifetime of ServiceAccount tokens, whatever a client requests, such as 24h [default: none]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    service_account_max_token_expiration: Option<Duration>,
    /// Additional name or address in the API server's certificate; may be repeated
    #[arg(long = "tls-san", value_name = "NAME")]
    tls_san: Vec<String>,
    /// Address of an external load balancer in front of the masters; used with --init
    #[arg(long, value_name = "HOST:PORT")]
    control_plane_endpoint: Option<String>,
    /// CIDR of Pod addresses; used with --init [default: 10.42.0.0/16]
    #[arg(long)]
    pod_cidr: Option<Ipv4Net>,
    /// CIDR of ClusterIPs; used with --init [default: 10.96.0.0/16]
    #[arg(long)]
    service_cidr: Option<Ipv4Net>,
}

impl MasterArgs {
    fn into_config(self) -> Result<MasterConfig> {
        let mut config: MasterConfig = config_file::load(self.config.as_deref())?;
        if self.join.is_some() {
            config.join = self.join;
        }
        if self.token.is_some() {
            config.token = self.token;
        }
        if self.replace.is_some() {
            config.replace = self.replace;
        }
        config.peers.extend(self.peers);
        let seconds = |time: Duration| time.as_secs();
        set(&mut config.event_ttl_s, self.event_ttl.map(seconds));
        set(&mut config.autopilot.replace_dead_after_s, self.replace_dead_after.map(seconds));
        set(&mut config.autopilot.learner_expiry_s, self.learner_expiry.map(seconds));
        set(&mut config.masters, self.masters);
        set(&mut config.name, self.name);
        set(&mut config.data_dir, self.data_dir);
        set(&mut config.bind_address, self.bind_address);
        set(&mut config.advertise_address, self.advertise_address);
        set(&mut config.api_port, self.api_port);
        set(&mut config.peer_port, self.peer_port);
        set(&mut config.disk_reserve_mib, self.disk_reserve_mib);
        set(&mut config.log_mib, self.log_mib);
        set(&mut config.snapshot_count, self.snapshot_count);
        set(&mut config.certificate_lifetime_s, self.certificate_lifetime.map(seconds));
        if let Some(longest) = self.service_account_max_token_expiration {
            config.service_account_max_token_expiration_s = Some(longest.as_secs());
        }
        config.tls_san.extend(self.tls_san);
        set(&mut config.cluster.pod_cidr, self.pod_cidr);
        set(&mut config.cluster.service_cidr, self.service_cidr);
        if self.control_plane_endpoint.is_some() {
            config.cluster.control_plane_endpoint = self.control_plane_endpoint;
        }
        if config.name.is_empty() {
            config.name = config_file::hostname();
        }
        Ok(config)
    }
}

/// Runs `ephor master`.
pub async fn run(arguments: MasterArgs) -> Result<()> {
    let (print, format, init) = (arguments.print_config, arguments.log_format, arguments.init);
    let mut config = arguments.into_config()?;
    if print {
        config.token = config.token.map(|_| "<hidden>".into());
        return config_file::print(&config);
    }
    config.validate()?;
    if init {
        return create(&config);
    }
    logging::init(format);
    crate::memory::give_back_freed()?;
    let shutdown = CancellationToken::new();
    signals::cancel_on_termination(shutdown.clone())?;
    let (data_dir, reserve) = (config.data_dir.clone(), config.disk_reserve_mib << 20);
    // The run gets its own token: a master that stops because the disk is full still waits on the outer one.
    let result = run_once(config, shutdown.child_token()).await;
    match result {
        Err(error) if is_of_store(&error) && free_space::is_short(&data_dir, reserve) => {
            free_space::start_again_once_free(&data_dir, reserve, &error, &shutdown).await
        }
        other => other,
    }
}

/// Creates a cluster without starting its first master, which is started like on any other day.
fn create(config: &MasterConfig) -> Result<()> {
    let env = Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new());
    let cluster_id = master_node::create(config, &env)?;
    println!(
        "Cluster {cluster_id} was created in {}.\n\
         Start its first master with the same flags without --init: ephor master --advertise-address {} ...",
        config.data_dir.display(),
        config.advertise_address
    );
    Ok(())
}

/// Whether an error may come from a full disk.
fn is_of_store(error: &anyhow::Error) -> bool {
    use master_node::Error::{Consensus, Failed, NoSpace};
    matches!(error.downcast_ref(), Some(NoSpace { .. } | Failed(_) | Consensus(_)))
}

async fn run_once(config: MasterConfig, shutdown: CancellationToken) -> Result<()> {
    let env = Env::production(Arc::new(TlsNetwork::joining()), shutdown.clone());
    let master = master_node::build(config, env, Objects::Sled).await?;
    let network = start_network(&master, shutdown.clone()).await;
    let result = master.run().await;
    shutdown.cancel();
    if let Some(network) = network {
        network.stopped().await;
    }
    Ok(result?)
}

/// Starts the overlay and the service proxy of a master, through which its API server
/// reaches pods and services. Without root the master runs without them: `None`.
async fn start_network(master: &Master, shutdown: CancellationToken) -> Option<Arc<NodeNetwork>> {
    let (config, settings) = (master.config(), master.settings());
    let IpAddr::V4(address) = config.advertise_address else {
        tracing::warn!("no IPv4 address: this master does not reach pods");
        return None;
    };
    let mut network =
        NetworkConfig::new(&config.name, address, config.data_dir.join("network")).without_pods();
    network.cluster_cidr = settings.pod_cidr;
    network.service_cidr = settings.service_cidr;
    network.overlay.vni = settings.vxlan_id;
    network.overlay.port = settings.vxlan_port;
    network.dns = None;
    match NodeNetwork::start(network, master.client(), master.masters(), None, shutdown).await {
        Ok(network) => Some(network),
        Err(error) => {
            tracing::warn!(%error, "no overlay: this master does not reach pods and services");
            None
        }
    }
}
