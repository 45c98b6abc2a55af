//! The links of a dev cluster: one bridge on the host, one veth pair per node.
//! Created by batches for iproute2, which `ops/quickstart` installs.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::layout::{BRIDGE, DevNode, Layout};

/// Creates the bridge and gives it the host's address.
pub fn create_bridge() -> Result<()> {
    if link_exists(BRIDGE) {
        return Ok(());
    }
    let host = Layout::host_address();
    batch(
        None,
        &format!("link add {BRIDGE} type bridge\naddr add {host}/24 dev {BRIDGE}\nlink set {BRIDGE} up\n"),
    )
}

/// Connects a node's namespace to the bridge.
pub fn attach(node: &DevNode) -> Result<()> {
    if link_exists(&node.host_link()) {
        return Ok(());
    }
    let (link, namespace) = (node.host_link(), node.namespace());
    batch(
        None,
        &format!(
            "link add {link} type veth peer name eth0 netns {namespace}\n\
             link set {link} master {BRIDGE}\nlink set {link} up\n"
        ),
    )?;
    let (address, host) = (node.address, Layout::host_address());
    batch(
        Some(&namespace),
        &format!(
            "link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {host}\n"
        ),
    )
}

/// Sets a node's link up or down, like plugging or pulling its cable.
pub fn set_link(node: &DevNode, up: bool) -> Result<()> {
    batch(None, &format!("link set {} {}\n", node.host_link(), if up { "up" } else { "down" }))
}

/// Removes a node's link; does nothing when it does not exist.
pub fn detach(node: &DevNode) -> Result<()> {
    remove_link(&node.host_link())
}

/// Removes the bridge; does nothing when it does not exist.
pub fn delete_bridge() -> Result<()> {
    remove_link(BRIDGE)
}

fn remove_link(name: &str) -> Result<()> {
    if link_exists(name) { batch(None, &format!("link del {name}\n")) } else { Ok(()) }
}

fn link_exists(name: &str) -> bool {
    std::path::Path::new("/sys/class/net").join(name).exists()
}

fn batch(namespace: Option<&str>, commands: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    if let Some(namespace) = namespace {
        ip.args(["-n", namespace]);
    }
    let mut child = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running ip (Debian package iproute2)")?;
    child.stdin.take().context("ip has no input")?.write_all(commands.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "ip: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
