//! The namespaces of a dev node: a network namespace that `ip netns` sees and a
//! mount namespace, both held by bind mounts, so that they outlive every
//! process in them (a worker's containers must survive the worker).
//!
//! `hold` runs in a process of its own (`ephor dev hold`), creates both namespaces and
//! waits; `create` binds them to files; `exec` (`ephor dev exec`) enters them before it
//! becomes a node's process, while it is still single-threaded.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::layout::{DevNode, run_root};

const NETNS_DIR: &str = "/run/netns";

fn network_file(node: &DevNode) -> PathBuf {
    Path::new(NETNS_DIR).join(node.namespace())
}

fn mount_file(node: &DevNode) -> PathBuf {
    run_root().join("ns").join(&node.name)
}

/// Creates both namespaces and binds them to their files; does nothing when they exist.
pub fn create(node: &DevNode) -> Result<()> {
    if exists(node) {
        return Ok(());
    }
    delete(node)?;
    private_directory(&run_root().join("ns"))?;
    fs::create_dir_all(NETNS_DIR)?;
    let mut holder = Command::new(std::env::current_exe()?)
        .args(["dev", "hold"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the namespace holder")?;
    let bound = bind_when_ready(node, &mut holder);
    drop(holder.stdin.take());
    holder.wait()?;
    bound
}

fn bind_when_ready(node: &DevNode, holder: &mut std::process::Child) -> Result<()> {
    let mut line = String::new();
    let output = holder.stdout.take().context("the namespace holder has no output")?;
    BufReader::new(output).read_line(&mut line)?;
    ensure!(line.trim() == "ready", "the namespaces of {} could not be made", node.name);
    for (kind, file) in [("net", network_file(node)), ("mnt", mount_file(node))] {
        File::create(&file).with_context(|| format!("creating {}", file.display()))?;
        let source = format!("/proc/{}/ns/{kind}", holder.id());
        mount(Some(source.as_str()), &file, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("binding {source} to {}", file.display()))?;
    }
    Ok(())
}

/// Whether both files are bound to namespaces.
pub fn exists(node: &DevNode) -> bool {
    is_mount(&network_file(node)) && is_mount(&mount_file(node))
}

/// Removes both namespaces; does nothing for those that do not exist.
pub fn delete(node: &DevNode) -> Result<()> {
    for file in [mount_file(node), network_file(node)] {
        while is_mount(&file) {
            umount2(&file, MntFlags::MNT_DETACH).with_context(|| format!("unmounting {}", file.display()))?;
        }
        match fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("removing {}", file.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Unmounts the directory of the mount namespaces, which is a mount itself.
pub fn delete_directory() -> Result<()> {
    let directory = run_root().join("ns");
    while is_mount(&directory) {
        umount2(&directory, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

/// Makes `path` a private mount: a mount namespace can be bound only to a file on such a mount.
fn private_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path)?;
    if !is_mount(path) {
        mount(Some(path), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        mount(None::<&str>, path, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)?;
    }
    Ok(())
}

/// Whether `path` is a mount point.
pub(super) fn is_mount(path: &Path) -> bool {
    let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else { return false };
    let wanted = path.to_string_lossy();
    table.lines().any(|line| line.split(' ').nth(4) == Some(&wanted))
}

/// Runs `ephor dev hold`: creates the namespaces and keeps them alive until its input ends.
pub fn hold() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    // Mounts inside the node stay there, and later mounts of the host do not appear in it.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    // A sysfs shows the network namespace of the process that mounted it.
    remount_sys()?;
    // The containers of nodes need shared mount propagation below the node.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)?;
    println!("ready");
    std::io::stdout().flush()?;
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest)?;
    Ok(())
}

/// Mounts a /sys for this network namespace and moves the host's cgroup mounts into it.
fn remount_sys() -> Result<()> {
    let keep = run_root().join("cgroup-move");
    fs::create_dir_all(&keep)?;
    mount(Some("/sys/fs/cgroup"), &keep, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    umount2("/sys", MntFlags::MNT_DETACH).context("unmounting the host's /sys")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).context("mounting /sys")?;
    mount(Some(&keep), "/sys/fs/cgroup", None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    umount2(&keep, MntFlags::MNT_DETACH)?;
    Ok(())
}

/// Runs `ephor dev exec NODE -- COMMAND`: replaces this process by the command inside the node's namespaces.
pub fn exec(node: &DevNode, command: &[String]) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else { bail!("no command given") };
    let network = File::open(network_file(node)).with_context(|| format!("{} is not up", node.name))?;
    let mounts = File::open(mount_file(node)).with_context(|| format!("{} is not up", node.name))?;
    setns(network, CloneFlags::CLONE_NEWNET)?;
    setns(mounts, CloneFlags::CLONE_NEWNS)?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("running {program}"))
}
