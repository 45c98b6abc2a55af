//! A container's root file system: mounts the overlay in a private mount namespace and prepares its content
//! before the container is created.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, chown, chroot, fchdir, fchown};

use super::ShimError;
use super::plan::{LaunchPlan, Propagation, ResolvedUser, RootfsPlan};
use super::user::Accounts;
use crate::paths::container_file;

/// Moves this process into a mount namespace of its own, mounts `plan`'s overlay on the bundle's `rootfs`
/// there, and returns that path. The mount exists as long as a process is in the namespace.
pub(crate) fn mount_overlay(plan: &LaunchPlan) -> Result<PathBuf, ShimError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(ShimError::io("make a mount namespace"))?;
    let flags = match plan.propagation {
        Propagation::Private => Some(MsFlags::MS_PRIVATE),
        Propagation::HostToContainer => Some(MsFlags::MS_SLAVE),
        // Mounts made in the container propagate to the host, so that they stay in the host's peer groups.
        Propagation::Bidirectional => None,
    };
    if let Some(flags) = flags {
        let none = None::<&str>;
        mount(none, "/", none, flags | MsFlags::MS_REC, none)
            .map_err(ShimError::io("set mount propagation"))?;
    }
    let target = plan.bundle.join(container_file::ROOTFS);
    fs::create_dir_all(&target).map_err(ShimError::io("make the root's mount point"))?;
    let options =
        overlay_options(&plan.rootfs, &plan.bundle).map_err(ShimError::io("prepare the overlay"))?;
    // Lower directories are relative to the layers' directory, so that many fit into one page of options.
    std::env::set_current_dir(&plan.rootfs.layers_directory).map_err(ShimError::io("enter the layers"))?;
    mount(Some("overlay"), &target, Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str()))
        .map_err(ShimError::io("mount the overlay"))?;
    std::env::set_current_dir("/").map_err(ShimError::io("leave the layers"))?;
    Ok(target)
}

/// Checks, before the container is created, that the image knows the names of its user and groups. Blocks;
/// the mounts disappear with the thread in whose mount namespace they are.
pub(crate) fn check_user(plan: &LaunchPlan) -> Result<(), ShimError> {
    if !plan.user.has_name() {
        return Ok(());
    }
    let plan = plan.clone();
    let thread = std::thread::Builder::new().name("image-user".into()).spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).map_err(ShimError::io("make a mount namespace"))?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)
            .map_err(ShimError::io("set mount propagation"))?;
        std::env::set_current_dir(&plan.rootfs.layers_directory)
            .map_err(ShimError::io("enter the layers"))?;
        let root = match plan.rootfs.layers.as_slice() {
            [] => return Accounts::default().resolve(&plan.user).map(drop).map_err(ShimError::Container),
            [only] => PathBuf::from(only).join("fs"),
            _ => {
                let target = plan.bundle.join(container_file::ROOTFS);
                fs::create_dir_all(&target).map_err(ShimError::io("make the root's mount point"))?;
                let options = format!("lowerdir={}", lower_directories(&plan.rootfs));
                let flags = MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
                mount(Some("overlay"), &target, Some("overlay"), flags, Some(options.as_str()))
                    .map_err(ShimError::io("mount the overlay"))?;
                target
            }
        };
        chroot(&root).map_err(ShimError::io("enter the root file system"))?;
        let accounts = Accounts::read().map_err(ShimError::io("read the image's accounts"))?;
        accounts.resolve(&plan.user).map(drop).map_err(ShimError::Container)
    });
    let thread = thread.map_err(ShimError::io("start a thread"))?;
    thread.join().map_err(|_| ShimError::Container("looking the user up failed".into()))?
}

/// Returns the layers for mount options, topmost first, relative to the layers' directory.
fn lower_directories(plan: &RootfsPlan) -> String {
    let topmost_first = plan.layers.iter().rev().map(|name| format!("{name}/fs"));
    topmost_first.collect::<Vec<_>>().join(":")
}

fn overlay_options(plan: &RootfsPlan, bundle: &Path) -> io::Result<String> {
    let lower = match plan.layers.is_empty() {
        true => {
            // An image without layers gets an empty lower directory.
            let empty = bundle.join("empty");
            fs::create_dir_all(&empty)?;
            escaped(&empty)
        }
        false => lower_directories(plan),
    };
    fs::create_dir_all(&plan.upper)?;
    fs::set_permissions(&plan.upper, fs::Permissions::from_mode(0o755))?;
    crate::files::make_private_directory(&plan.work)?;
    Ok(format!("lowerdir={lower},upperdir={},workdir={}", escaped(&plan.upper), escaped(&plan.work)))
}

/// Escapes the separators of mount options in a path.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(',', "\\,").replace(':', "\\:")
}

/// Prepares the root file system and looks up the process's user. Runs on a thread that has `rootfs` as its
/// root directory, so that no link of the image leads outside.
pub(crate) fn prepare(plan: &LaunchPlan, rootfs: &Path) -> Result<ResolvedUser, ShimError> {
    let volumes: Vec<(PathBuf, fs::File)> = plan
        .rootfs
        .volumes
        .iter()
        .map(|(inside, host)| {
            fs::create_dir_all(host)?;
            Ok((inside.clone(), fs::File::open(host)?))
        })
        .collect::<io::Result<_>>()
        .map_err(ShimError::io("make a volume"))?;
    let (request, rootfs) = (plan.user.clone(), rootfs.to_owned());
    let working_directory = PathBuf::from(plan.spec["process"]["cwd"].as_str().unwrap_or("/"));
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_FS).map_err(ShimError::io("leave the shared root"))?;
        chroot(&rootfs).map_err(ShimError::io("enter the root file system"))?;
        std::env::set_current_dir("/").map_err(ShimError::io("enter the root file system"))?;
        let accounts = Accounts::read().map_err(ShimError::io("read the image's accounts"))?;
        let user = accounts.resolve(&request).map_err(ShimError::Container)?;
        for (inside, host) in &volumes {
            fill(inside, host).map_err(ShimError::io(format!("fill the volume {}", inside.display())))?;
        }
        if !working_directory.exists() {
            let what = format!("make the working directory {}", working_directory.display());
            fs::create_dir_all(&working_directory).map_err(ShimError::io(what))?;
        }
        Ok(user)
    });
    thread.join().map_err(|_| ShimError::Container("preparing the root file system failed".into()))?
}

/// Copies the image's content at a volume's path into the volume's empty host directory.
fn fill(inside: &Path, host: &fs::File) -> io::Result<()> {
    let Ok(found) = fs::metadata(inside) else { return Ok(()) };
    if !found.is_dir() {
        return Ok(());
    }
    let sources = list(inside)?;
    fchown(host, Some(Uid::from_raw(found.uid())), Some(Gid::from_raw(found.gid())))?;
    host.set_permissions(found.permissions())?;
    // The volume lies outside of the thread's root directory and is reached as its current directory.
    fchdir(host)?;
    for (path, metadata) in sources {
        let target = path.strip_prefix(inside).unwrap_or(&path).to_owned();
        copy(&path, &target, &metadata)?;
    }
    std::env::set_current_dir("/")
}

fn list(directory: &Path) -> io::Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        all.push((entry.path(), metadata.clone()));
        if metadata.is_dir() {
            all.extend(list(&entry.path())?);
        }
    }
    Ok(all)
}

fn copy(from: &Path, to: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    let owner = (Some(Uid::from_raw(metadata.uid())), Some(Gid::from_raw(metadata.gid())));
    if metadata.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
        return std::os::unix::fs::lchown(to, Some(metadata.uid()), Some(metadata.gid()));
    }
    if metadata.is_dir() {
        fs::create_dir_all(to)?;
    } else if metadata.is_file() {
        fs::copy(from, to)?;
    } else {
        return Ok(()); // devices and sockets are not content
    }
    chown(to, owner.0, owner.1)?;
    fs::set_permissions(to, metadata.permissions())
}
