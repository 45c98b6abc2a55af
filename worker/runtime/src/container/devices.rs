//! Host devices that a container gets.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use k8s_cri::v1;
use nix::sys::stat::{major, minor};
use serde_json::{Value, json};

use super::SpecError;

/// Devices for the specification, and the rules that allow access to them.
#[derive(Default)]
pub(super) struct Devices {
    pub nodes: Vec<Value>,
    pub rules: Vec<Value>,
}

/// Returns the requested devices; all of the host's devices for a privileged container.
pub(super) fn of(requested: &[v1::Device], privileged: bool) -> Result<Devices, SpecError> {
    let mut devices = Devices::default();
    if privileged {
        devices.rules.push(json!({ "allow": true, "access": "rwm" }));
        // A device that disappears while /dev is read is left out.
        for (path, node) in host_devices(Path::new("/dev")) {
            devices.nodes.push(describe(&path, &node).0);
        }
        return Ok(devices);
    }
    devices.rules.push(json!({ "allow": false, "access": "rwm" }));
    for asked in requested {
        let failed = |source| SpecError::Device { path: asked.host_path.clone(), source };
        let node = fs::metadata(&asked.host_path).map_err(failed)?;
        if !is_device(&node) {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a device")));
        }
        let (value, mut rule) = describe(&asked.container_path, &node);
        rule["access"] = json!(if asked.permissions.is_empty() { "rwm" } else { &asked.permissions });
        devices.nodes.push(value);
        devices.rules.push(rule);
    }
    Ok(devices)
}

fn is_device(node: &fs::Metadata) -> bool {
    node.file_type().is_char_device() || node.file_type().is_block_device()
}

fn describe(path: &str, node: &fs::Metadata) -> (Value, Value) {
    let kind = if node.file_type().is_block_device() { "b" } else { "c" };
    let (major, minor) = (major(node.rdev()), minor(node.rdev()));
    let value = json!({
        "path": path, "type": kind, "major": major, "minor": minor,
        "fileMode": node.mode() & 0o7777, "uid": node.uid(), "gid": node.gid(),
    });
    (value, json!({ "allow": true, "type": kind, "major": major, "minor": minor }))
}

fn host_devices(directory: &Path) -> Vec<(String, fs::Metadata)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        // Entries of /dev that every container gets anyway, or that are not devices.
        if ["pts", "shm", "fd", "mqueue", "console", "ptmx", ".lxc", ".lxd-mounts", ".udev"]
            .iter()
            .any(|n| name == *n)
        {
            continue;
        }
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        if metadata.is_dir() {
            found.extend(host_devices(&entry.path()));
        } else if is_device(&metadata) {
            found.push((entry.path().to_string_lossy().into_owned(), metadata));
        }
    }
    found
}
