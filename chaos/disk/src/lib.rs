//! A disk that can fail and lose power: a FUSE file system over an ordinary directory. The directory holds
//! what programs see; the old state of what they have not synced yet is kept beside it, so that a power cut
//! can take changes away again, completely or in part. `ephor chaos disk` mounts it below a master of a live
//! experiment, `power-cuts` below the store alone; both control it through a socket, with [`Control`].
//!
//! What survives a power cut, and which real disks and file systems this models, is described in
//! `ops/docs/decisions/power-cuts.md`.

mod control;
mod cut;
mod data;
mod fault;
mod fuse;
mod names;
mod server;
mod state;

#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::{BackgroundSession, MountOption, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

pub use control::{Control, Error};
pub use cut::PowerCut;
pub use fault::{Counts, DiskFault};

use self::fuse::Volume;
use self::server::Server;
use self::state::State;

/// Number of threads that serve requests.
const THREADS: usize = 2;

/// A mounted disk. Dropping it unmounts the disk; the backing directory keeps what was written.
pub struct Mounted {
    session: Option<BackgroundSession>,
    backing: PathBuf,
    at: PathBuf,
    _server: Server,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Mounted ===

impl Mounted {
    /// Mounts `backing` at the directory `at` and listens on the socket `control`. Creates both directories
    /// if they are missing. Needs root.
    pub fn mount(backing: &Path, at: &Path, control: &Path) -> io::Result<Self> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(backing)?;
        unmount_stale(at)?;
        builder.create(at)?;
        let backing = backing.canonicalize()?;
        let state = Arc::new(Mutex::new(State::new(&backing)?));
        let server = Server::listen(control, state.clone())?;
        let mut config = fuser::Config::default();
        config.mount_options = vec![
            MountOption::FSName("ephor-chaos-disk".to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoAtime,
        ];
        config.acl = SessionACL::All;
        config.n_threads = Some(THREADS);
        let session = fuser::spawn_mount(Volume::new(state), at, &config)?;
        Ok(Self { session: Some(session), backing, at: at.to_owned(), _server: server })
    }

    /// Unmounts the disk, also if programs still use it: their calls then fail.
    pub fn unmount(mut self) -> io::Result<()> {
        self.detach()
    }

    /// Returns whether the disk is still mounted: another program may have unmounted it.
    pub fn is_mounted(&self) -> bool {
        self.session.as_ref().is_some_and(|session| !session.guard.is_finished())
    }

    fn detach(&mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        match umount2(&self.at, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        // The thread ends with the last open file, which must not be waited for.
        drop(session);
        names::clean(&self.backing)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::warn!(%error, at = %self.at.display(), "the disk stays mounted");
        }
    }
}

/// Unmounts what a killed earlier process left mounted at `at`.
fn unmount_stale(at: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(at) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOTCONN as i32) => {
            Ok(umount2(at, MntFlags::MNT_DETACH)?)
        }
        _ => Ok(()),
    }
}
