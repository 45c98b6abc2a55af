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
use worker_network::{Network, NetworkConfig};

use crate::config_file::{self, set};
use crate::free_space;
use crate::logging::{self, Format};
use crate::signals;

/// Flags of `ephor master`; see [`MasterConfig`] for what they mean.
#[derive(Debug, Args)]
pub struct MasterArgs {
    /// A YAML file with the configuration; flags override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the effective configuration and end
    #[arg(long)]
    print_config: bool,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log_format: Format,
    /// Create a new cluster in an empty data directory and end; said once, before the first start
    #[arg(long, conflicts_with = "join")]
    init: bool,
    /// Join the cluster that has a master at HOST:PORT (peer port, 6444); several are tried in order
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    join: Option<Vec<String>>,
    /// The join token (`ephor token create --role master`)
    #[arg(long, env = "EPHOR_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Take the place of this master (name or id) once caught up; with --join
    #[arg(long, value_name = "NAME", requires = "join")]
    replace: Option<String>,
    /// HOST:PORT (peer port) of masters that are no longer where they were: one that is reached is enough
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    peers: Vec<String>,
    /// How long after their last write events are kept, such as 1h; 0s: for ever [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    event_ttl: Option<Duration>,
    /// A master silent for this long makes place for a learner, such as 10m; 0s: never [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    replace_dead_after: Option<Duration>,
    /// A joiner that has not come up for this long is forgotten; 0s: never [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    learner_expiry: Option<Duration>,
    /// How many masters the cluster is meant to have: 1, 3, 5 or 7
    #[arg(long)]
    masters: Option<u32>,
    /// The name of this master [default: the hostname]
    #[arg(long)]
    name: Option<String>,
    /// Where log, objects and keys lie
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The address the servers listen on
    #[arg(long)]
    bind_address: Option<IpAddr>,
    /// The address others reach this master at
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// Port of the Kubernetes API
    #[arg(long)]
    api_port: Option<u16>,
    /// Port of Raft, joining and node liveness
    #[arg(long)]
    peer_port: Option<u16>,
    /// MiB to be kept free where the data lies [default: the lesser of 256 and 5 % of the disk]
    #[arg(long, value_name = "MIB")]
    disk_reserve_mib: Option<u64>,
    /// MiB of log above which it is purged, however few entries they are [default: 256]
    #[arg(long, value_name = "MIB")]
    log_mib: Option<u64>,
    /// Entries of the log between two snapshots [default: 20000]
    #[arg(long, value_name = "ENTRIES")]
    snapshot_count: Option<u64>,
    /// How long certificates of masters and nodes live, the same on all masters [default: 365d]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    certificate_lifetime: Option<Duration>,
    /// How long ServiceAccount tokens live at most, whatever is asked for, such as 24h
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    service_account_max_token_expiration: Option<Duration>,
    /// Another name or address for the serving certificate; may be repeated
    #[arg(long = "tls-san", value_name = "NAME")]
    tls_san: Vec<String>,
    /// HOST:PORT of an external balancer in front of the masters (with --init)
    #[arg(long, value_name = "HOST:PORT")]
    control_plane_endpoint: Option<String>,
    /// Pod addresses (with --init)
    #[arg(long)]
    pod_cidr: Option<Ipv4Net>,
    /// ClusterIPs (with --init)
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
         Start its first master, now and ever after with the same flags but --init: ephor master \
         --advertise-address {} ...",
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
async fn start_network(master: &Master, shutdown: CancellationToken) -> Option<Arc<Network>> {
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
    match Network::start(network, master.client(), master.masters(), None, shutdown).await {
        Ok(network) => Some(network),
        Err(error) => {
            tracing::warn!(%error, "no overlay: this master does not reach pods and services");
            None
        }
    }
}
