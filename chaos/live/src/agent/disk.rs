//! The disk below the node's data, where it is one that can fail: the file
//! system of `ephor chaos disk`, steered through its socket. Called by `node`.

use std::io;
use std::path::Path;

use crate::effect::DiskEffect;

/// Lets it fail from now on.
///
/// # Errors
/// What the socket or the disk says.
pub fn set(_socket: &Path, _kind: DiskEffect) -> io::Result<()> {
    Err(io::Error::other("not wired"))
}

/// How many calls failed or waited in this way since the disk was mounted.
///
/// # Errors
/// What the socket or the disk says.
pub fn counted(_socket: &Path, _kind: DiskEffect) -> io::Result<u64> {
    Err(io::Error::other("not wired"))
}

/// Lets it work again.
///
/// # Errors
/// What the socket or the disk says.
pub fn clear(_socket: &Path) -> io::Result<()> {
    Err(io::Error::other("not wired"))
}

/// Loses what was not synced.
///
/// # Errors
/// What the socket or the disk says.
pub fn power_cut(_socket: &Path, _seed: u64) -> io::Result<()> {
    Err(io::Error::other("not wired"))
}
