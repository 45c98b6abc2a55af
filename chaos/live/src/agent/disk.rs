//! The disk below the node's data, where it is one that can fail: the file
//! system of `ephor chaos disk`, steered through its socket. Called by `node`.

use std::io;
use std::path::Path;
use std::time::Duration;

use chaos_disk::{Control, DiskFault};

use crate::effect::DiskEffect;

/// Lets it fail from now on.
///
/// # Errors
/// What the socket or the disk says.
pub fn set(socket: &Path, kind: DiskEffect) -> io::Result<()> {
    let fault = match kind {
        DiskEffect::Eio => DiskFault::Eio,
        DiskEffect::Enospc => DiskFault::Enospc,
        DiskEffect::Iops { limit } => DiskFault::Iops(limit),
        DiskEffect::SlowFsync { delay_ms } => DiskFault::SlowFsync(Duration::from_millis(delay_ms)),
    };
    connect(socket)?.set(fault).map_err(io::Error::other)
}

/// How many calls failed or waited in this way since the disk was mounted.
///
/// # Errors
/// What the socket or the disk says.
pub fn counted(socket: &Path, kind: DiskEffect) -> io::Result<u64> {
    let counts = connect(socket)?.counts().map_err(io::Error::other)?;
    Ok(match kind {
        DiskEffect::Eio => counts.eio,
        DiskEffect::Enospc => counts.enospc,
        DiskEffect::SlowFsync { .. } => counts.slow_fsync,
        DiskEffect::Iops { .. } => counts.limited,
    })
}

/// Lets it work again.
///
/// # Errors
/// What the socket or the disk says.
pub fn clear(socket: &Path) -> io::Result<()> {
    connect(socket)?.clear().map_err(io::Error::other)
}

/// Loses what was not synced.
///
/// # Errors
/// What the socket or the disk says.
pub fn power_cut(socket: &Path, seed: u64) -> io::Result<()> {
    let cut = connect(socket)?.power_cut(seed).map_err(io::Error::other)?;
    tracing::info!(?cut, "power lost");
    Ok(())
}

fn connect(socket: &Path) -> io::Result<Control> {
    Control::connect(socket).map_err(io::Error::other)
}
