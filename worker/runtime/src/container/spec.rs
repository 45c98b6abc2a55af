//! Builds a container's OCI runtime specification from its image, its CRI configuration and its pod. The
//! defaults are those of nodes with containerd.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_cri::v1;
use k8s_cri::v1::NamespaceMode;
use serde_json::{Map, Value, json};

use super::mounts::MountContext;
use super::{SpecError, capabilities, devices, mounts};
use crate::image::ImageConfig;
use crate::paths::sandbox_file;
use crate::shim::plan::Propagation;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Input from which a specification is built.
pub(crate) struct SpecInput<'a> {
    pub config: &'a v1::ContainerConfig,
    pub image: &'a ImageConfig,
    /// The pod's directory for volatile state.
    pub sandbox_state: &'a Path,
    pub hostname: &'a str,
    pub cgroup: &'a Path,
    /// PID namespace to join; `None` if the container gets a new one or uses the host's.
    pub pid_namespace: Option<PathBuf>,
    /// Paths that the image declares as volumes, with their host directories.
    pub image_volumes: &'a [(PathBuf, PathBuf)],
}

/// Builds the specification, except for user and root path, which the launcher fills in.
pub(crate) fn build(input: &SpecInput<'_>) -> Result<Value, SpecError> {
    let default = v1::LinuxContainerSecurityContext::default();
    let linux = input.config.linux.clone().unwrap_or_default();
    let context = linux.security_context.as_ref().unwrap_or(&default);
    let namespaces = context.namespace_options.clone().unwrap_or_default();
    let resources = linux.resources.unwrap_or_default();
    let devices = devices::of(&input.config.devices, context.privileged)?;
    let mut mounts = mounts::plan(
        input.config,
        &MountContext {
            sandbox_state: input.sandbox_state,
            privileged: context.privileged,
            readonly_rootfs: context.readonly_rootfs,
            host_ipc: namespaces.ipc() == NamespaceMode::Node,
        },
    )?;
    for (path, source) in input.image_volumes {
        mounts.push(json!({ "destination": path, "type": "bind", "source": source, "options": ["rbind", "rprivate", "rw", "nodev"] }));
    }
    let paths = |list: &[String]| if context.privileged { Vec::new() } else { list.to_vec() };
    let propagation = match mounts::propagation(&input.config.mounts) {
        Propagation::Private => "private",
        Propagation::HostToContainer => "slave",
        Propagation::Bidirectional => "shared",
    };
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs", "readonly": context.readonly_rootfs },
        "process": process(input, context, &resources)?,
        "mounts": mounts,
        "linux": {
            "resources": resource_limits(&resources, devices.rules),
            "cgroupsPath": input.cgroup,
            "namespaces": namespace_list(input, &namespaces, context.privileged),
            "devices": devices.nodes,
            "maskedPaths": paths(&context.masked_paths),
            "readonlyPaths": paths(&context.readonly_paths),
            "rootfsPropagation": propagation,
        },
    }))
}

/// Returns the command line: the container's command and arguments, with the image's as defaults.
pub(crate) fn arguments(config: &v1::ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, SpecError> {
    let process = image.config.clone().unwrap_or_default();
    let mut command = config.command.clone();
    let mut rest = config.args.clone();
    if command.is_empty() {
        // The image's arguments are used only with the image's entrypoint.
        if rest.is_empty() {
            rest = process.cmd.unwrap_or_default();
        }
        command = process.entrypoint.unwrap_or_default();
    }
    command.extend(rest);
    if command.is_empty() { Err(SpecError::NoCommand) } else { Ok(command) }
}

fn process(
    input: &SpecInput<'_>,
    context: &v1::LinuxContainerSecurityContext,
    resources: &v1::LinuxContainerResources,
) -> Result<Value, SpecError> {
    let image = input.image.config.clone().unwrap_or_default();
    let directory =
        [input.config.working_dir.as_str(), image.working_dir.as_deref().unwrap_or_default(), "/"];
    let directory = directory.into_iter().find(|d| !d.is_empty()).unwrap_or("/");
    let granted: Vec<&str> = capabilities::of(context, capabilities::bound())?.into_iter().collect();
    let ambient: Vec<&str> = context
        .capabilities
        .iter()
        .flat_map(|c| &c.add_ambient_capabilities)
        .filter_map(|name| {
            granted.iter().copied().find(|g| g.trim_start_matches("CAP_") == name.trim_start_matches("CAP_"))
        })
        .collect();
    let mut process = json!({
        "terminal": input.config.tty,
        "user": { "uid": 0, "gid": 0 },
        "args": arguments(input.config, input.image)?,
        "env": environment(input, image.env.unwrap_or_default()),
        "cwd": directory,
        "capabilities": {
            "bounding": granted, "effective": granted, "permitted": granted, "inheritable": ambient, "ambient": ambient,
        },
        "noNewPrivileges": context.no_new_privs,
    });
    if input.config.linux.as_ref().is_some_and(|l| l.resources.is_some()) {
        process["oomScoreAdj"] = json!(resources.oom_score_adj);
    }
    Ok(process)
}

/// Returns the environment: the defaults (PATH, HOSTNAME, TERM), overridden by the image's variables, and
/// those by the container's own.
fn environment(input: &SpecInput<'_>, image: Vec<String>) -> Vec<String> {
    let mut all = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", input.hostname)];
    if input.config.tty {
        all.push("TERM=xterm".into());
    }
    all.extend(image);
    all.extend(input.config.envs.iter().map(|kv| format!("{}={}", kv.key, kv.value)));
    let mut position: BTreeMap<String, usize> = BTreeMap::new();
    let mut unique: Vec<String> = Vec::with_capacity(all.len());
    for entry in all {
        let key = entry.split('=').next().unwrap_or_default().to_owned();
        match position.get(&key) {
            Some(at) => unique[*at] = entry,
            None => {
                position.insert(key, unique.len());
                unique.push(entry);
            }
        }
    }
    unique
}

fn resource_limits(resources: &v1::LinuxContainerResources, device_rules: Vec<Value>) -> Value {
    let mut cpu = Map::new();
    if resources.cpu_shares > 0 {
        cpu.insert("shares".into(), json!(resources.cpu_shares));
    }
    if resources.cpu_quota != 0 {
        cpu.insert("quota".into(), json!(resources.cpu_quota));
    }
    if resources.cpu_period > 0 {
        cpu.insert("period".into(), json!(resources.cpu_period));
    }
    for (key, value) in [("cpus", &resources.cpuset_cpus), ("mems", &resources.cpuset_mems)] {
        if !value.is_empty() {
            cpu.insert(key.into(), json!(value));
        }
    }
    let mut limits = json!({ "devices": device_rules });
    if !cpu.is_empty() {
        limits["cpu"] = Value::Object(cpu);
    }
    if resources.memory_limit_in_bytes > 0 {
        limits["memory"] = json!({ "limit": resources.memory_limit_in_bytes });
        // The limit of memory plus swap; without swap accounting it cannot be set.
        let swap = Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists();
        if swap || resources.memory_swap_limit_in_bytes > 0 {
            let both = resources.memory_swap_limit_in_bytes.max(resources.memory_limit_in_bytes);
            limits["memory"]["swap"] = json!(both);
        }
    }
    limits
}

fn namespace_list(input: &SpecInput<'_>, options: &v1::NamespaceOption, privileged: bool) -> Vec<Value> {
    let held = |name: &str| input.sandbox_state.join(sandbox_file::NAMESPACES).join(name);
    let mut list = vec![json!({ "type": "mount" })];
    if options.network() != NamespaceMode::Node {
        list.push(json!({ "type": "network", "path": held("net") }));
        list.push(json!({ "type": "uts", "path": held("uts") }));
    }
    if options.ipc() != NamespaceMode::Node {
        list.push(json!({ "type": "ipc", "path": held("ipc") }));
    }
    match (&input.pid_namespace, options.pid()) {
        (_, NamespaceMode::Node) => {}
        (Some(path), _) => list.push(json!({ "type": "pid", "path": path })),
        (None, _) => list.push(json!({ "type": "pid" })),
    }
    // With version 1 the container's cgroups are bind-mounted one by one instead.
    if !privileged && Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        list.push(json!({ "type": "cgroup" }));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    fn image() -> ImageConfig {
        let config = json!({ "Entrypoint": ["/entry"], "Cmd": ["a", "b"], "Env": ["PATH=/bin", "X=1"] });
        from_value(json!({ "config": config, "rootfs": {} })).expect("image configuration")
    }

    fn command(command: &[&str], args: &[&str]) -> Vec<String> {
        let list = |items: &[&str]| items.iter().map(ToString::to_string).collect();
        let config = v1::ContainerConfig { command: list(command), args: list(args), ..Default::default() };
        arguments(&config, &image()).expect("a command")
    }

    #[test]
    fn a_command_replaces_the_images_arguments_too() {
        assert_eq!(command(&[], &[]), ["/entry", "a", "b"]);
        assert_eq!(command(&["/x"], &[]), ["/x"]);
        assert_eq!(command(&[], &["c"]), ["/entry", "c"]);
        assert_eq!(command(&["/x"], &["c"]), ["/x", "c"]);
    }

    #[test]
    fn later_variables_replace_earlier_ones_in_place() {
        let envs = vec![v1::KeyValue { key: "X".into(), value: "2=3".into() }];
        let config = v1::ContainerConfig { envs, ..Default::default() };
        let image = image();
        let input = SpecInput {
            config: &config,
            image: &image,
            sandbox_state: Path::new("/s"),
            hostname: "web-0",
            cgroup: Path::new("/c"),
            pid_namespace: None,
            image_volumes: &[],
        };
        let spec = build(&input).expect("a specification");
        assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "HOSTNAME=web-0", "X=2=3"]));
    }
}
