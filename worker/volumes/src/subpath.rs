//! `subPath` mounts: binds a file or directory of a volume to a place from which a container mounts it,
//! without following a symlink out of the volume (the pod can create symlinks in it).
//!
//! The path is opened with `openat2(RESOLVE_BENEATH)` and bound through its file descriptor, so the path that
//! was checked is the one that is mounted.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, mkdirat};

use crate::{Error, tmpfs};

/// Binds `sub_path` of the volume at `volume` onto `target` and returns `target`. A missing sub-path is
/// created as a directory with the volume's mode. An existing mount on `target` is replaced.
pub fn prepare(volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf, Error> {
    if Path::new(sub_path).components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir))
    {
        return Err(Error::Invalid(format!("subPath \"{sub_path}\" must be a relative path without '..'")));
    }
    let root = nix::fcntl::open(volume, OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY, Mode::empty())
        .map_err(|e| Error::io("open volume", volume, e))?;
    let opened = open_or_make(&root, volume, sub_path)?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    if target.exists() && tmpfs::is_mount_point(target)? {
        // The atomic writer may have replaced the file of a file mount: bind again so that a restarted
        // container sees the new file.
        tmpfs::unmount_below(target)?;
    }
    let is_dir = fs::metadata(&source).map_err(|e| Error::io("stat", volume.join(sub_path), e))?.is_dir();
    make_target(target, is_dir)?;
    mount(Some(&source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|e| Error::io("bind mount on", target, e))?;
    // With shared propagation, unmounting below `target` would also unmount in the volume; as a slave it does
    // not.
    let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, target, None::<&str>, slave, None::<&str>).map_err(|e| {
        if let Err(error) = umount2(target, MntFlags::MNT_DETACH) {
            tracing::warn!(%error, target = %target.display(), "unmount");
        }
        Error::io("make a slave of", target, e)
    })?;
    Ok(target.to_path_buf())
}

fn make_target(target: &Path, is_dir: bool) -> Result<(), Error> {
    if is_dir {
        return fs::create_dir_all(target).map_err(|e| Error::io("make directory", target, e));
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(|e| Error::io("make directory", parent, e))?;
    }
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(target)
        .map(drop)
        .map_err(|e| Error::io("create", target, e))
}

fn open_beneath(root: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

fn open_or_make(root: &OwnedFd, volume: &Path, sub_path: &str) -> Result<OwnedFd, Error> {
    let escape = |error: nix::Error| match error {
        nix::Error::EXDEV | nix::Error::ELOOP => {
            Error::Invalid(format!("subpath \"{sub_path}\" not within volume path \"{}\"", volume.display()))
        }
        other => Error::io("open", volume.join(sub_path), other),
    };
    match open_beneath(root, Path::new(sub_path)) {
        Ok(fd) => return Ok(fd),
        Err(nix::Error::ENOENT) => {}
        Err(error) => return Err(escape(error)),
    }
    let mode = Mode::from_bits_truncate(nix::sys::stat::fstat(root).map_err(escape)?.st_mode & 0o7777);
    let mut so_far = PathBuf::new();
    let mut parent = open_beneath(root, Path::new(".")).map_err(escape)?;
    for part in Path::new(sub_path).components().filter(|part| matches!(part, Component::Normal(_))) {
        match mkdirat(&parent, part.as_os_str(), Mode::S_IRWXU) {
            Ok(()) => {
                let made = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(mode.bits());
                let path =
                    PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(part.as_os_str());
                fs::set_permissions(&path, made).map_err(|e| Error::io("chmod", &path, e))?;
            }
            Err(nix::Error::EEXIST) => {}
            Err(error) => return Err(escape(error)),
        }
        so_far.push(part.as_os_str());
        parent = open_beneath(root, &so_far).map_err(escape)?;
    }
    Ok(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symlink_out_of_the_volume_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("evil")).unwrap();
        std::os::unix::fs::symlink("../..", volume.join("up")).unwrap();
        for path in ["evil", "evil/passwd", "up", "../x", "/etc"] {
            assert!(prepare(&volume, path, &dir.path().join("target")).is_err(), "{path}");
        }
    }

    #[test]
    fn mounts_of_the_volume_stay_when_the_sub_path_is_unmounted() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("host");
        let tmpfs = |at: &Path| {
            fs::create_dir_all(at).unwrap();
            mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        };
        // A host where every mount is shared, as with systemd.
        tmpfs(&host);
        mount(None::<&str>, &host, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        tmpfs(&host.join("disks/one"));
        let target = prepare(&host, "disks", &dir.path().join("pod/target")).unwrap();
        assert!(tmpfs::is_mount_point(&target.join("one")).unwrap());
        tmpfs::unmount_below(&dir.path().join("pod")).unwrap();
        let stayed = tmpfs::is_mount_point(&host.join("disks/one")).unwrap();
        tmpfs::unmount_below(&host).unwrap();
        assert!(stayed, "the host's mount is gone");
    }

    #[test]
    fn a_missing_directory_is_made_and_bound() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        let target = prepare(&volume, "a/b", &dir.path().join("target")).unwrap();
        fs::write(volume.join("a/b/file"), "x").unwrap();
        let seen = fs::read_to_string(target.join("file"));
        tmpfs::unmount_below(dir.path()).unwrap();
        assert_eq!(seen.unwrap(), "x");
    }
}
