//! Accessors for Pod objects that many files need.

use std::sync::LazyLock;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};

static NO_SPEC: LazyLock<PodSpec> = LazyLock::new(PodSpec::default);
static NO_STATUS: LazyLock<PodStatus> = LazyLock::new(PodStatus::default);

/// Returns the specification; the API server accepts no pod without one.
pub fn spec(pod: &Pod) -> &PodSpec {
    pod.spec.as_ref().unwrap_or(&NO_SPEC)
}

/// Returns the status, empty if there is none yet.
pub fn status(pod: &Pod) -> &PodStatus {
    pod.status.as_ref().unwrap_or(&NO_STATUS)
}

/// Returns `metadata.uid`.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// Returns `metadata.name`.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// Returns `metadata.namespace`.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// Formats a pod as `NAME_NAMESPACE(UID)`, like kubelet in messages.
pub fn display(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// Returns whether the pod is being deleted.
pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Returns whether a phase is final.
pub fn is_terminal_phase(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Returns `spec.restartPolicy`, `Always` if it is not set.
pub fn restart_policy(spec: &PodSpec) -> &str {
    spec.restart_policy.as_deref().unwrap_or("Always")
}

/// Returns whether an init container is a sidecar, which runs beside the regular ones (restartPolicy Always,
/// KEP-753).
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Returns whether the container is one of the pod's init containers.
pub fn is_init(spec: &PodSpec, name: &str) -> bool {
    spec.init_containers.iter().flatten().any(|c| c.name == name)
}

/// Returns whether a container that ended with this code is to be restarted: by its own rules and policy
/// (KEP-5307), else by the pod's policy.
pub fn restarts_after(container: &Container, spec: &PodSpec, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        let matched = if codes.operator == "NotIn" { !listed } else { listed };
        if matched {
            return true;
        }
    }
    let policy = container.restart_policy.as_deref().unwrap_or_else(|| restart_policy(spec));
    match policy {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        // Init containers of a pod with policy Always run until they succeed once.
        _ => !is_init(spec, &container.name) || is_sidecar(container) || exit_code != 0,
    }
}

/// Finds a container of the pod by name: regular, init or ephemeral (converted to a plain container).
pub fn find_container(pod: &Pod, name: &str) -> Option<Container> {
    let spec = spec(pod);
    let found = spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name);
    found.cloned().or_else(|| ephemeral_containers(spec).into_iter().find(|c| c.name == name))
}

/// Converts ephemeral containers to plain ones, with the fields both types have.
pub fn ephemeral_containers(spec: &PodSpec) -> Vec<Container> {
    let convert = |e: &k8s_openapi::api::core::v1::EphemeralContainer| Container {
        name: e.name.clone(),
        image: e.image.clone(),
        command: e.command.clone(),
        args: e.args.clone(),
        working_dir: e.working_dir.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        volume_mounts: e.volume_mounts.clone(),
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        security_context: e.security_context.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        tty: e.tty,
        // Ephemeral containers are never restarted.
        restart_policy: Some("Never".to_owned()),
        ..Default::default()
    };
    spec.ephemeral_containers.iter().flatten().map(convert).collect()
}

/// Returns the pod's grace period in seconds: that of its deletion, else its own; at least 1, as in kubelet.
pub fn grace_seconds(pod: &Pod) -> i64 {
    let deletion = pod.metadata.deletion_timestamp.as_ref().and(pod.metadata.deletion_grace_period_seconds);
    let own = spec(pod).termination_grace_period_seconds.unwrap_or(30);
    deletion.unwrap_or(own).max(1)
}
