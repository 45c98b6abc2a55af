//! Builds the CRI configuration of a container.

use std::collections::HashMap;

use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerMetadata, Int64Value, KeyValue, LinuxContainerConfig,
    LinuxContainerSecurityContext, Mount, NamespaceMode, SeLinuxOption,
};
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::context::Context;
use crate::cri::{image_spec, labels};
use crate::env::expand::expand;
use crate::sync::sandbox;
use crate::{pod, protection, resources};

const MASKED_PATHS: [&str; 13] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Inputs of a container's configuration besides the pod's specification.
pub struct ContainerInputs {
    /// Image reference as the runtime knows it.
    pub image: String,
    /// Restart count of the container.
    pub attempt: u32,
    /// Environment variables, as names and values.
    pub environment: Vec<(String, String)>,
    /// Mounts of the container.
    pub mounts: Vec<Mount>,
}

/// Builds the configuration; the error names the protection that cannot be enforced.
pub fn config(
    context: &Context,
    pod: &Pod,
    container: &Container,
    inputs: ContainerInputs,
) -> Result<ContainerConfig, String> {
    let lookup = |name: &str| inputs.environment.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let expand_all =
        |words: &Option<Vec<String>>| words.iter().flatten().map(|word| expand(word, lookup)).collect();
    let mut image = image_spec(&inputs.image);
    image.user_specified_image = container.image.clone().unwrap_or_default();
    let security_context = security(context, pod, container)?;
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt: inputs.attempt }),
        image: Some(image),
        command: expand_all(&container.command),
        args: expand_all(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts: inputs.mounts,
        labels: container_labels(pod, container),
        annotations: annotations(pod, container, inputs.attempt),
        log_path: format!("{}/{}.log", container.name, inputs.attempt),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources::container_resources(pod, container, context.node_memory)),
            security_context: Some(security_context),
        }),
        envs: inputs.environment.into_iter().map(|(key, value)| KeyValue { key, value }).collect(),
        ..Default::default()
    })
}

fn container_labels(pod: &Pod, container: &Container) -> HashMap<String, String> {
    let mut map = labels::pod_labels(pod::name(pod), pod::namespace(pod), pod::uid(pod), None);
    map.insert(labels::CONTAINER_NAME.to_owned(), container.name.clone());
    map
}

fn annotations(pod: &Pod, container: &Container, attempt: u32) -> HashMap<String, String> {
    let message_path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    let message_policy = container.termination_message_policy.as_deref().unwrap_or("File");
    let grace = pod::spec(pod).termination_grace_period_seconds.unwrap_or(30);
    let image = container.image.as_deref().unwrap_or_default();
    let mut annotations: HashMap<String, String> = [
        (labels::HASH, labels::container_hash(&container.name, image)),
        (labels::RESTART_COUNT, attempt.to_string()),
        (labels::MESSAGE_PATH, message_path.to_owned()),
        (labels::MESSAGE_POLICY, message_policy.to_owned()),
        (labels::GRACE, grace.to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    let pre_stop = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
    if let Some(json) = pre_stop.and_then(|hook| serde_json::to_string(hook).ok()) {
        annotations.insert(labels::PRE_STOP.to_owned(), json);
    }
    annotations
}

fn security(
    context: &Context,
    pod: &Pod,
    container: &Container,
) -> Result<LinuxContainerSecurityContext, String> {
    let of_pod = pod::spec(pod).security_context.as_ref();
    let own = container.security_context.as_ref();
    let int = |value: Option<i64>| value.map(|value| Int64Value { value });
    let user = own.and_then(|s| s.run_as_user).or_else(|| of_pod.and_then(|s| s.run_as_user));
    let group = own.and_then(|s| s.run_as_group).or_else(|| of_pod.and_then(|s| s.run_as_group));
    let privileged = own.and_then(|s| s.privileged).unwrap_or(false);
    let mut groups = of_pod.and_then(|s| s.supplemental_groups.clone()).unwrap_or_default();
    groups.extend(of_pod.and_then(|s| s.fs_group));
    let strict = of_pod.and_then(|s| s.supplemental_groups_policy.as_deref()) == Some("Strict");
    let capabilities = own.and_then(|s| s.capabilities.as_ref());
    let apparmor = protection::apparmor(pod, container);
    // Checked again here: ephemeral containers are added after the pod was admitted.
    if let Some(reason) = context.abilities.no_apparmor
        && apparmor.as_ref().is_some_and(|profile| profile.type_ != "Unconfined")
    {
        return Err(format!("Cannot enforce AppArmor: {reason}"));
    }
    let label = own
        .and_then(|s| s.se_linux_options.as_ref())
        .or_else(|| of_pod.and_then(|s| s.se_linux_options.as_ref()));
    if label.is_some() && !context.abilities.selinux {
        return Err("SELinux is not enabled on the host or in the runtime".to_owned());
    }
    let seccomp = protection::seccomp(pod, container, &context.config.root_dir.join("seccomp"))?;
    let unmasked = own.and_then(|s| s.proc_mount.as_deref()) == Some("Unmasked") || privileged;
    let paths =
        |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(|p| (*p).to_owned()).collect() };
    Ok(LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
            drop_capabilities: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: int(user),
        run_as_group: int(group),
        readonly_rootfs: own.and_then(|s| s.read_only_root_filesystem).unwrap_or(false),
        supplemental_groups: groups,
        supplemental_groups_policy: i32::from(strict),
        no_new_privs: own.and_then(|s| s.allow_privilege_escalation) == Some(false),
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READONLY_PATHS),
        seccomp: Some(seccomp),
        apparmor: context
            .abilities
            .no_apparmor
            .is_none()
            .then(|| protection::apparmor_profile(apparmor.as_ref()))
            .flatten(),
        selinux_options: label.map(|label| SeLinuxOption {
            user: label.user.clone().unwrap_or_default(),
            role: label.role.clone().unwrap_or_default(),
            r#type: label.type_.clone().unwrap_or_default(),
            level: label.level.clone().unwrap_or_default(),
        }),
        ..Default::default()
    })
}

/// Returns the container's namespaces: network and IPC are the pod's; its PID namespace is its own unless the
/// pod says otherwise.
fn namespaces(pod: &Pod) -> k8s_cri::v1::NamespaceOption {
    let options = sandbox::namespaces(pod);
    debug_assert_ne!(options.network, NamespaceMode::Container as i32, "a pod has one network");
    options
}
