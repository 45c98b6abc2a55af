//! `ephor chaos disk`: mounts the disk below a master's data, which fails on demand.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::signals;

/// Mount a file system that can fail, slow down and lose power, until SIGTERM
#[derive(Debug, Args)]
pub struct DiskArgs {
    /// Directory that stores the files
    #[arg(long, value_name = "DIR")]
    backing: PathBuf,
    /// Mount point of the file system
    #[arg(long, value_name = "MOUNTPOINT")]
    at: PathBuf,
    /// Unix socket on which faults are requested
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
}

/// Runs `ephor chaos disk`.
pub async fn run(arguments: DiskArgs) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "`ephor chaos disk` needs root (try sudo)");
    let DiskArgs { backing, at, control } = arguments;
    let end = CancellationToken::new();
    signals::cancel_on_termination(end.clone())?;
    let mounted = chaos_disk::Mounted::mount(&backing, &at, &control)
        .with_context(|| format!("mounting {} at {}", backing.display(), at.display()))?;
    println!("mounted at {}, control at {}", at.display(), control.display());
    let mut look = tokio::time::interval(Duration::from_secs(1));
    while mounted.is_mounted() {
        tokio::select! {
            biased;
            () = end.cancelled() => break,
            _ = look.tick() => {}
        }
    }
    mounted.unmount().context("unmounting the disk")
}
