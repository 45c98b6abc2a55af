//! `ephor reset`: removes everything that Ephor left on this machine: containers,
//! mounts, cgroups, network devices and rules, and the data.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

/// Remove everything a master or worker left on this machine
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// Do it without asking
    #[arg(long)]
    yes: bool,
    /// The master's data directory
    #[arg(long, default_value = "/var/lib/ephor/master", value_name = "DIR")]
    master_data_dir: PathBuf,
    /// The worker's data directory
    #[arg(long, default_value = "/var/lib/ephor/worker", value_name = "DIR")]
    worker_data_dir: PathBuf,
    /// The worker's run directory
    #[arg(long, default_value = "/run/ephor", value_name = "DIR")]
    run_dir: PathBuf,
    /// The worker's cgroup prefix
    #[arg(long, default_value = "/ephor", value_name = "PATH")]
    cgroup_root: PathBuf,
}

/// Runs `ephor reset`.
pub async fn run(arguments: ResetArgs) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "`ephor reset` needs root (try sudo)");
    if !arguments.yes {
        bail!("this removes all containers and data of this node; say --yes if that is meant");
    }
    let worker = worker_node::config::WorkerConfig {
        data_dir: arguments.worker_data_dir.clone(),
        run_dir: arguments.run_dir.clone(),
        cgroup_root: arguments.cgroup_root,
        ..worker_node::config::WorkerConfig::default()
    };
    worker_node::cleanup(&worker).await?;
    for directory in [&arguments.master_data_dir, &arguments.worker_data_dir, &arguments.run_dir] {
        remove(directory)?;
    }
    println!("nothing of Ephor is left here");
    Ok(())
}

fn remove(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}
