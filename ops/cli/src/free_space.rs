//! Restarts a master that has stopped because its disk was full: waits until enough is
//! free and then replaces the process by a new one with the same process id, so that
//! no state from the time of the full disk is left. Called by `commands/master.rs`.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use proto_env::{Disk, Space, SystemDisk};
use tokio_util::sync::CancellationToken;

/// Interval between two looks at the disk's free space.
const INTERVAL: Duration = Duration::from_millis(500);

fn space(data_dir: &Path) -> Option<Space> {
    SystemDisk.space(data_dir).ok().flatten()
}

/// Whether the data directory's disk has less free space than a master keeps free (`reserve` bytes; 0: the
/// default).
pub fn is_short(data_dir: &Path, reserve: u64) -> bool {
    space(data_dir).is_some_and(|space| space.free < space.reserve(reserve))
}

/// Waits until `reserve` bytes are free and replaces this process by the same program with
/// the same arguments; returns only when `shutdown` comes first. `error` is the reason why the
/// master stopped.
pub async fn start_again_once_free(
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
    tracing::info!("enough of the disk is free again: starting");
    let program = std::env::current_exe().context("finding this program")?;
    Err(Command::new(program).args(std::env::args_os().skip(1)).exec()).context("starting again")
}
