//! `ephor kubeconfig`: prints an operator's kubeconfig, on a master.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

/// Print a kubeconfig for operators, from the keys of the master on this machine
#[derive(Debug, Args)]
pub struct KubeconfigArgs {
    /// The master's data directory
    #[arg(long, default_value = "/var/lib/ephor/master", value_name = "DIR")]
    data_dir: PathBuf,
    /// The URL clients use; an address that outlives this master is best
    #[arg(long, default_value = "https://127.0.0.1:6443", value_name = "URL")]
    server: String,
    /// How long its certificate lives; this command makes the next one
    #[arg(long, value_name = "TIME", default_value = "365d", value_parser = humantime::parse_duration)]
    lifetime: Duration,
    /// Write it here (0600) instead of printing it
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs `ephor kubeconfig`.
pub fn run(arguments: &KubeconfigArgs) -> Result<()> {
    match &arguments.output {
        Some(path) => {
            let KubeconfigArgs { data_dir, server, lifetime, .. } = arguments;
            crate::kubeconfig::write_admin(data_dir, server, *lifetime, path)
        }
        None => {
            let KubeconfigArgs { data_dir, server, lifetime, .. } = arguments;
            print!("{}", crate::kubeconfig::admin(data_dir, server, *lifetime)?);
            Ok(())
        }
    }
}
