//! Implements `ephor dev up --chaos`: mounts a disk that can fail below every master's
//! data, and runs a chaos agent on every node for `ephor chaos run --live`. Agents run in
//! the namespaces of their nodes, disks on the host: a mount there
//! is visible in namespaces that are created later.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chaos_live::agent::AGENT_PORT;
use nix::mount::{MntFlags, umount2};

use super::layout::{DevNode, Layout, Role};
use super::namespace::is_mount;
use super::{process, up};
use crate::commands::chaos::{AGENTS_FILE, certificate};

/// Deadline for mounting one disk.
const MOUNT_WITHIN: Duration = Duration::from_secs(20);

/// Suffix of the names of the agents' processes.
pub const AGENT_SUFFIX: &str = "-chaos";

/// Name of the process of a node's agent.
pub fn agent_name(node: &DevNode) -> String {
    format!("{}{AGENT_SUFFIX}", node.name)
}

fn disk_name(node: &DevNode) -> String {
    format!("{}-disk", node.name)
}

fn has_disk(layout: &Layout, node: &DevNode) -> bool {
    layout.chaos && node.role != Role::Worker
}

fn socket(layout: &Layout, node: &DevNode) -> String {
    layout.chaos_dir(node).join("disk.sock").to_string_lossy().into_owned()
}

/// Mounts the disks of all masters, and of spare machines for later ones.
pub async fn mount_disks(layout: &Layout) -> Result<()> {
    let nodes: Vec<DevNode> = layout.nodes().into_iter().filter(|node| has_disk(layout, node)).collect();
    for node in &nodes {
        std::fs::create_dir_all(layout.chaos_dir(node))?;
        std::fs::create_dir_all(layout.data_dir(node))?;
        let backing = layout.root.join("disks").join(&node.name).to_string_lossy().into_owned();
        let at = layout.data_dir(node).to_string_lossy().into_owned();
        let socket = socket(layout, node);
        let arguments =
            ["chaos", "disk", "--backing", &backing, "--at", &at, "--control", &socket].map(str::to_owned);
        process::spawn(layout, &disk_name(node), &arguments)?;
    }
    let end = Instant::now() + MOUNT_WITHIN;
    for node in &nodes {
        while !is_mount(&layout.data_dir(node)) {
            let log = layout.log_file(&disk_name(node));
            if Instant::now() >= end || process::running(&disk_name(node)).is_none() {
                bail!("the disk of {} is not mounted; see {}", node.name, log.display());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

/// Unmounts the disk of a node and ends its process; does nothing where there is none.
pub fn remove_disk(layout: &Layout, node: &DevNode) -> Result<()> {
    let at = layout.data_dir(node);
    while is_mount(&at) {
        umount2(&at, MntFlags::MNT_DETACH).with_context(|| format!("unmounting {}", at.display()))?;
    }
    process::kill_now(&disk_name(node))
}

/// Starts the agents of all nodes, with certificates issued from the keys of `first`,
/// and writes the list of their addresses.
pub fn start_agents(layout: &Layout, first: &DevNode) -> Result<()> {
    let nodes = layout.nodes();
    for node in &nodes {
        certificate::write(&layout.data_dir(first), &node.name, &layout.chaos_dir(node))?;
    }
    let lines: String = nodes.iter().map(|n| format!("{}={}:{AGENT_PORT}\n", n.name, n.address)).collect();
    std::fs::write(layout.root.join(AGENTS_FILE), lines)?;
    nodes.iter().try_for_each(|node| start_agent(layout, node))
}

/// Whether a node's agent has its certificate, so that it can run.
pub fn has_certificate(layout: &Layout, node: &DevNode) -> bool {
    layout.chaos && layout.chaos_dir(node).join("agent.crt").exists()
}

/// Starts the agent of a node, unless it is running.
pub fn start_agent(layout: &Layout, node: &DevNode) -> Result<()> {
    let exe = std::env::current_exe()?.to_string_lossy().into_owned();
    let path = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    let directory = layout.chaos_dir(node);
    let mut arguments: Vec<String> =
        ["dev", "--root", &path(layout.root.clone()), "exec", &node.name, "--", &exe, "chaos", "agent"]
            .map(str::to_owned)
            .to_vec();
    let listen = format!("{}:{AGENT_PORT}", node.address);
    for (flag, value) in [
        ("--name", node.name.clone()),
        ("--listen", listen),
        ("--state-dir", path(directory.join("journal"))),
        ("--pki", path(directory)),
        ("--pid-file", path(process::pid_file(&node.name))),
        ("--log-file", path(layout.log_file(&node.name))),
    ] {
        arguments.extend([flag.to_owned(), value]);
    }
    if has_disk(layout, node) {
        arguments.extend(["--disk-control".to_owned(), socket(layout, node)]);
    }
    arguments.extend(["--".to_owned(), exe]);
    arguments.extend(up::steady_arguments(layout, node));
    process::spawn(layout, &agent_name(node), &arguments)
}
