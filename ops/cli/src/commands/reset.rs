//! `ephor reset`: removes everything that Ephor left on this machine: containers,
//! mounts, cgroups, network devices and rules, and the data.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

/// Remove all containers, network settings and data of the masters and workers of this machine
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    /// Data directory of the master
    #[arg(long, default_value = "/var/lib/ephor/master", value_name = "DIR")]
    master_data_dir: PathBuf,
    /// Data directory of the worker
    #[arg(long, default_value = "/var/lib/ephor/worker", value_name = "DIR")]
    worker_data_dir: PathBuf,
    /// Run directory of the worker
    #[arg(long, default_value = "/run/ephor", value_name = "DIR")]
    run_dir: PathBuf,
    /// Parent cgroup of the worker's pods
    #[arg(long, default_value = "/ephor", value_name = "PATH")]
    cgroup_root: PathBuf,
}

/// Runs `ephor reset`.
pub async fn run(arguments: ResetArgs) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "`ephor reset` needs root (try sudo)");
    if !arguments.yes {
        bail!("this removes all containers and data of this node; give --yes to confirm");
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
    println!("everything of Ephor was removed from this machine");
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
