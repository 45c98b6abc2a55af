//! `ephor kubeconfig`: prints an operator's kubeconfig, on a master.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

/// Print an operator's kubeconfig, made with the keys of the master on this machine
#[derive(Debug, Args)]
pub struct KubeconfigArgs {
    /// Data directory of the master
    #[arg(long, default_value = "/var/lib/ephor/master", value_name = "DIR")]
    data_dir: PathBuf,
    /// URL of the API server, best at an address that outlives this master
    #[arg(long, default_value = "https://127.0.0.1:6443", value_name = "URL")]
    server: String,
    /// Lifetime of the certificate in the kubeconfig; run this command again to renew it
    #[arg(long, value_name = "TIME", default_value = "365d", value_parser = humantime::parse_duration)]
    lifetime: Duration,
    /// File to write (mode 0600) instead of printing the kubeconfig
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
