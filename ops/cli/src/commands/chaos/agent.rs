//! `ephor chaos agent`: runs the chaos agent of this node. It runs only where it is
//! started on purpose: by an operator's unit, or by `ephor dev up --chaos`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use chaos_live::agent::{AGENT_PORT, Delays, Node, Programs, Supervised};
use clap::Args;
use proto_env::TlsMaterial;
use tokio_util::sync::CancellationToken;

use super::certificate;

/// Run the agent that injects faults into this node and undoes them when their time is over
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Name of the node [default: the hostname]
    #[arg(long)]
    name: Option<String>,
    /// Address on which the agent listens
    #[arg(long, value_name = "HOST:PORT", default_value_t = format!("0.0.0.0:{AGENT_PORT}"))]
    listen: String,
    /// Directory in which the agent records the faults it has injected
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ephor/chaos")]
    state_dir: PathBuf,
    /// Directory of the agent's certificate, as made by `ephor chaos certificate`
    #[arg(long, value_name = "DIR", conflicts_with = "data_dir")]
    pki: Option<PathBuf>,
    /// Data directory of this master, with whose CA the agent issues its own certificate
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ephor/master")]
    data_dir: PathBuf,
    /// File that holds the pid of the node's process
    #[arg(long, value_name = "FILE", requires = "command")]
    pid_file: Option<PathBuf>,
    /// File for the output of the node's process when the agent starts it
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Control socket of the disk below the node's data, as served by `ephor chaos disk`
    #[arg(long, value_name = "SOCKET")]
    disk_control: Option<PathBuf>,
    /// Undo all faults recorded in the state directory and exit; needs no network and no running agent
    #[arg(long)]
    recover: bool,
    /// Command that starts the node's process once the node has joined
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs `ephor chaos agent`.
pub async fn run(arguments: AgentArgs) -> Result<()> {
    let agent_port =
        arguments.listen.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(AGENT_PORT);
    let (command, log_file) = (arguments.command, arguments.log_file);
    let process = arguments.pid_file.map(|pid_file| Supervised { pid_file, command, log_file });
    let name = arguments.name.unwrap_or_else(crate::config_file::hostname);
    let (delays, programs) = (Delays::default(), Programs::default());
    let node = Node { name, process, disk: arguments.disk_control, agent_port, delays, programs };
    if arguments.recover {
        let undone =
            chaos_live::agent::recover(&node, &arguments.state_dir).context("some faults are not undone")?;
        let words = if undone.is_empty() { "nothing".to_owned() } else { undone.join(", ") };
        println!("undone: {words}");
        return Ok(());
    }
    crate::logging::init(crate::logging::LogFormat::Text);
    let material = match &arguments.pki {
        Some(directory) => certificate::read(directory)?,
        None => {
            let issued = certificate::issue(&arguments.data_dir, &node.name)?;
            TlsMaterial { ca_pem: issued.0, certificate_pem: issued.1, key_pem: issued.2 }
        }
    };
    let shutdown = CancellationToken::new();
    crate::signals::cancel_on_termination(shutdown.clone())?;
    chaos_live::agent::run(node, &arguments.state_dir, &arguments.listen, &material, shutdown)
        .await
        .with_context(|| format!("the agent on {}", arguments.listen))
}
