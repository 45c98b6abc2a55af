//! A master whose disk is full does not serve, and nobody has to start it again: it
//! waits until there is room and then becomes a new process of the same id, in
//! which nothing is left of what the full disk did to the old one.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use proto_env::{Disk, Space, SystemDisk};
use tokio_util::sync::CancellationToken;

/// How often the disk is looked at.
const INTERVAL: Duration = Duration::from_millis(500);

fn space(data_dir: &Path) -> Option<Space> {
    SystemDisk.space(data_dir).ok().flatten()
}

/// Whether there is less room than a master keeps free.
pub fn is_short(data_dir: &Path, reserve: u64) -> bool {
    space(data_dir).is_some_and(|space| space.free < space.reserve(reserve))
}

/// Waits for room and starts this program again in this process; returns only when it
/// should end instead. `error` is why it stopped.
pub async fn start_again_with_room(
    data_dir: &Path,
    reserve: u64,
    error: &anyhow::Error,
    shutdown: &CancellationToken,
) -> Result<()> {
    let wanted = space(data_dir).map_or(0, |space| space.reserve(reserve));
    tracing::error!(
        reason = format!("{error:#}"),
        "this master has stopped and starts again once {} MiB are free in {}",
        wanted.div_ceil(1 << 20),
        data_dir.display()
    );
    while is_short(data_dir, reserve) {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
    tracing::info!("there is room again: starting");
    let program = std::env::current_exe().context("finding this program")?;
    Err(Command::new(program).args(std::env::args_os().skip(1)).exec()).context("starting again")
}
