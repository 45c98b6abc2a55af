//! `ephor worker`: builds the configuration and runs a worker until a stop signal.
//! Its containers keep running afterwards.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use tokio_util::sync::CancellationToken;
use worker_node::config::WorkerConfig;

use crate::config_file::{self, set};
use crate::logging::{self, LogFormat};
use crate::signals;

/// Flags of `ephor worker`; see [`WorkerConfig`] for what they mean.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Path of a YAML configuration file; flags override its values
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the effective configuration as YAML and exit
    #[arg(long)]
    print_config: bool,
    /// Format of log lines
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Peer addresses (port 6444 by default) of masters of the cluster to join, separated by commas and tried in order
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    join: Option<Vec<String>>,
    /// Join token, as printed by `ephor token create --role worker`
    #[arg(long, env = "EPHOR_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Name of the Node [default: the hostname]
    #[arg(long)]
    name: Option<String>,
    /// IPv4 address at which masters and other nodes reach this node; required
    #[arg(long)]
    address: Option<IpAddr>,
    /// Directory of certificates, images and pods [default: /var/lib/ephor/worker]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Directory of sockets and namespaces, emptied by a reboot [default: /run/ephor]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Socket of a CRI runtime (containerd, CRI-O) to use instead of the embedded runtime
    #[arg(long, value_name = "PATH")]
    cri_socket: Option<PathBuf>,
    /// Parent cgroup of all pods of this node [default: /ephor]
    #[arg(long, value_name = "PATH")]
    cgroup_root: Option<PathBuf>,
    /// Port of the node's HTTPS server (logs, exec, port-forward) [default: 10250]
    #[arg(long)]
    node_port: Option<u16>,
    /// Maximum number of pods on this node [default: 110]
    #[arg(long)]
    max_pods: Option<u32>,
    /// Registry (HOST[:PORT]) to reach over plain HTTP; may be repeated
    #[arg(long = "insecure-registry", value_name = "HOST")]
    insecure_registries: Vec<String>,
    /// Label with which the Node is registered; may be repeated
    #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label looks like KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl WorkerArgs {
    fn into_config(self) -> Result<WorkerConfig> {
        let mut config: WorkerConfig = config_file::load(self.config.as_deref())?;
        set(&mut config.join, self.join);
        if self.token.is_some() {
            config.token = self.token;
        }
        set(&mut config.name, self.name);
        set(&mut config.address, self.address);
        set(&mut config.data_dir, self.data_dir);
        set(&mut config.run_dir, self.run_dir);
        if self.cri_socket.is_some() {
            config.cri_socket = self.cri_socket;
        }
        set(&mut config.cgroup_root, self.cgroup_root);
        set(&mut config.node_port, self.node_port);
        set(&mut config.max_pods, self.max_pods);
        config.insecure_registries.extend(self.insecure_registries);
        config.labels.extend(self.labels.into_iter().collect::<BTreeMap<_, _>>());
        if config.name.is_empty() {
            config.name = config_file::hostname();
        }
        Ok(config)
    }
}

/// Runs `ephor worker`.
pub async fn run(arguments: WorkerArgs) -> Result<()> {
    let (print, format) = (arguments.print_config, arguments.log_format);
    let mut config = arguments.into_config()?;
    if print {
        config.token = config.token.map(|_| "<hidden>".into());
        return config_file::print(&config);
    }
    config.validate()?;
    logging::init(format);
    let shutdown = CancellationToken::new();
    signals::cancel_on_termination(shutdown.clone())?;
    Ok(worker_node::run(config, shutdown).await?)
}
