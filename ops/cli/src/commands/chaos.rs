//! `ephor chaos`: runs experiments, and the agents that inject faults on a live cluster.

mod agent;
pub mod certificate;
mod disk;
mod recover;
mod run;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

/// Inject faults into a cluster and verify its behaviour
#[derive(Debug, Args)]
pub struct ChaosArgs {
    #[command(subcommand)]
    command: ChaosCommand,
}

#[derive(Debug, Subcommand)]
enum ChaosCommand {
    Run(run::RunArgs),
    Recover(recover::RecoverArgs),
    Agent(agent::AgentArgs),
    Certificate(certificate::CertificateArgs),
    Disk(disk::DiskArgs),
}

/// Addresses of agents that cannot be found through the cluster.
#[derive(Debug, Args)]
struct AgentPlaces {
    /// Name and address (HOST or HOST:PORT) of an agent that is not found through the cluster; may be repeated
    #[arg(long = "agent", value_name = "NAME=HOST")]
    agents: Vec<String>,
    /// Port of agents whose address names none
    #[arg(long, default_value_t = chaos_live::agent::AGENT_PORT)]
    agent_port: u16,
}

impl AgentPlaces {
    /// Returns the given agents and those of a dev cluster, which are listed beside its kubeconfig.
    fn all(&self, kubeconfig: &Path) -> Result<BTreeMap<String, String>> {
        let beside = kubeconfig.parent().map(|directory| directory.join(AGENTS_FILE));
        let listed = beside.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        let lines = listed.lines().map(str::to_owned).filter(|line| !line.trim().is_empty());
        let place = |line: String| {
            let split =
                line.split_once('=').map(|(name, host)| (name.trim().to_owned(), host.trim().to_owned()));
            split.with_context(|| format!("`{line}` is not NAME=HOST; hint: for example m6=10.0.0.6"))
        };
        lines.chain(self.agents.iter().cloned()).map(place).collect()
    }
}

/// File beside a dev cluster's kubeconfig that lists its agents, as lines NAME=HOST:PORT.
pub const AGENTS_FILE: &str = "chaos/agents";

/// Returns the given kubeconfig or the default one.
fn kubeconfig(given: Option<PathBuf>) -> PathBuf {
    given.unwrap_or_else(crate::kubeconfig::default_path)
}

/// Runs `ephor chaos`.
pub fn run(arguments: ChaosArgs) -> Result<ExitCode> {
    let done = |result: Result<()>| result.map(|()| ExitCode::SUCCESS);
    match arguments.command {
        ChaosCommand::Run(arguments) => run::run(arguments),
        ChaosCommand::Recover(arguments) => done(crate::in_runtime(recover::run(arguments))),
        ChaosCommand::Agent(arguments) => done(crate::in_runtime(agent::run(arguments))),
        ChaosCommand::Disk(arguments) => done(crate::in_runtime(disk::run(arguments))),
        ChaosCommand::Certificate(arguments) => done(certificate::run(&arguments)),
    }
}
