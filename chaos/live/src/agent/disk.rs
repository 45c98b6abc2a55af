//! Faults of the disk below the node's data, if that is the file system of `ephor chaos disk`, which can fail
//! and is controlled through its socket. Called by `node`.

use std::io;
use std::path::Path;
use std::time::Duration;

use chaos_disk::{Control, DiskFault};

use crate::effect::DiskEffect;

/// Makes the disk fail from now on.
///
/// # Errors
/// Fails with what the socket or the disk says.
pub fn set(socket: &Path, kind: DiskEffect) -> io::Result<()> {
    let fault = match kind {
        DiskEffect::Eio => DiskFault::Eio,
        DiskEffect::Enospc => DiskFault::Enospc,
        DiskEffect::Iops { limit } => DiskFault::Iops(limit),
        DiskEffect::SlowFsync { delay_ms } => DiskFault::SlowFsync(Duration::from_millis(delay_ms)),
    };
    connect(socket)?.set(fault).map_err(io::Error::other)
}

/// Returns how many calls failed or waited in this way since the disk was mounted.
///
/// # Errors
/// Fails with what the socket or the disk says.
pub fn counted(socket: &Path, kind: DiskEffect) -> io::Result<u64> {
    let counts = connect(socket)?.counts().map_err(io::Error::other)?;
    Ok(match kind {
        DiskEffect::Eio => counts.eio,
        DiskEffect::Enospc => counts.enospc,
        DiskEffect::SlowFsync { .. } => counts.slow_fsync,
        DiskEffect::Iops { .. } => counts.limited,
    })
}

/// Ends the disk's fault.
///
/// # Errors
/// Fails with what the socket or the disk says.
pub fn clear(socket: &Path) -> io::Result<()> {
    connect(socket)?.clear().map_err(io::Error::other)
}

/// Makes the disk lose what was not synced, as in a power cut; `seed` decides what.
///
/// # Errors
/// Fails with what the socket or the disk says.
pub fn power_cut(socket: &Path, seed: u64) -> io::Result<()> {
    let cut = connect(socket)?.power_cut(seed).map_err(io::Error::other)?;
    tracing::info!(?cut, "power lost");
    Ok(())
}

fn connect(socket: &Path) -> io::Result<Control> {
    Control::connect(socket).map_err(io::Error::other)
}
