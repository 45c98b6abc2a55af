//! Fields of a pod that protect the node, or the pod from other pods: each is enforced, or the pod is refused
//! with kubelet's reason. `ops/docs/decisions/protecting-fields.md` lists these fields and where each is
//! enforced.
//!
//! The fields are checked in three places: node-side admission ([`admit`]: the pod fails), creating the
//! sandbox ([`sandbox`]: an event and a retry), and configuring a container ([`seccomp`],
//! [`recursive_read_only`]: the container waits with CreateContainerConfigError).

use std::path::{Component, Path};

use k8s_cri::v1::{SecurityProfile, security_profile::ProfileType};
use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SeccompProfile, VolumeMount};

use crate::admission::PodRejection;
use crate::pod;

/// Name of the runtime inside this binary, which supports neither AppArmor nor SELinux.
const EMBEDDED_RUNTIME: &str = "ephor";
const APPARMOR_SWITCH: &str = "/sys/module/apparmor/parameters/enabled";
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Sysctls that affect only the pod's own namespaces (kubelet's list). All other sysctls are refused.
const SAFE_SYSCTLS: [&str; 14] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Protections that this node's kernel and runtime can enforce for pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Reason why AppArmor profiles cannot be enforced; `None` if they can.
    pub no_apparmor: Option<&'static str>,
    /// Whether the runtime applies SELinux labels.
    pub selinux: bool,
    /// Whether the runtime honours supplementalGroupsPolicy Strict.
    pub strict_groups: bool,
    /// Whether the runtime supports recursive read-only mounts (submounts of a volume are read-only too).
    pub recursive_read_only: bool,
}

impl Abilities {
    /// Detects the abilities of this host with the runtime called `runtime_name`.
    pub fn of(runtime_name: &str, strict_groups: bool, recursive_read_only: bool) -> Self {
        let external = runtime_name != EMBEDDED_RUNTIME;
        let enabled =
            std::fs::read_to_string(APPARMOR_SWITCH).is_ok_and(|text| text.trim_start().starts_with('Y'));
        let no_apparmor = match (enabled, external) {
            (true, true) => None,
            (true, false) => Some("AppArmor is not supported by the container runtime"),
            (false, _) => Some("AppArmor is not enabled on the host"),
        };
        let selinux = external && Path::new("/sys/fs/selinux/enforce").exists();
        Self { no_apparmor, selinux, strict_groups, recursive_read_only }
    }
}

/// Refuses a pod that asks for a protection this node cannot enforce; the pod then fails, as with kubelet.
pub fn admit(pod: &Pod, abilities: &Abilities) -> Result<(), PodRejection> {
    let refuse = |reason: &str, message: String| Err(PodRejection { reason: reason.to_owned(), message });
    let spec = pod::spec(pod);
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return refuse("PodOSNotSupported", message.to_owned());
    }
    let security = spec.security_context.as_ref();
    let strict = security.and_then(|s| s.supplemental_groups_policy.as_deref()) == Some("Strict");
    if strict && !abilities.strict_groups {
        let message = "SupplementalGroupsPolicy=Strict is not supported in this node";
        return refuse("SupplementalGroupsPolicyNotSupported", message.to_owned());
    }
    if spec.resources.is_some() {
        let message = "pod-level resources are not supported on the node";
        return refuse("PodLevelResourcesNotSupported", message.to_owned());
    }
    let containers = containers(pod);
    let profiles = || containers.iter().filter_map(|container| apparmor(pod, container));
    let wanted = profiles().any(|profile| profile.type_ != "Unconfined");
    if let Some(reason) = abilities.no_apparmor.filter(|_| wanted) {
        return refuse("AppArmor", format!("Cannot enforce AppArmor: {reason}"));
    }
    let nameless = |p: &AppArmorProfile| {
        p.type_ == "Localhost" && p.localhost_profile.as_deref().unwrap_or_default().trim().is_empty()
    };
    if profiles().any(|profile| nameless(&profile)) {
        let message = "Cannot enforce AppArmor: invalid empty AppArmor profile name: \"\"";
        return refuse("AppArmor", message.to_owned());
    }
    for sysctl in security.and_then(|s| s.sysctls.as_ref()).into_iter().flatten() {
        let name = sysctl.name.replace('/', ".");
        let host = if name.starts_with("net.") { spec.host_network } else { spec.host_ipc };
        if !SAFE_SYSCTLS.contains(&name.as_str()) {
            return refuse("SysctlForbidden", format!("forbidden sysctl: \"{name}\" not allowlisted"));
        }
        if host == Some(true) {
            let namespace = if name.starts_with("net.") { "net" } else { "ipc" };
            let message = format!("forbidden sysctl: \"{name}\" not allowed with host {namespace} enabled");
            return refuse("SysctlForbidden", message);
        }
    }
    Ok(())
}

/// Checks that a sandbox can have the user namespace and SELinux labels the pod asks for; the error is the
/// message of a FailedCreatePodSandBox event.
pub fn sandbox(pod: &Pod, abilities: &Abilities) -> Result<(), String> {
    let spec = pod::spec(pod);
    if spec.host_users == Some(false) {
        return Err("can't set `spec.hostUsers: false`, runtime does not support user namespaces".to_owned());
    }
    let of_pod = spec.security_context.as_ref().and_then(|s| s.se_linux_options.as_ref());
    let labelled = of_pod.is_some()
        || containers(pod)
            .iter()
            .any(|c| c.security_context.as_ref().is_some_and(|security| security.se_linux_options.is_some()));
    if labelled && !abilities.selinux {
        return Err(
            "can't set `seLinuxOptions`, SELinux is not enabled on the host or in the runtime".to_owned()
        );
    }
    Ok(())
}

fn containers(pod: &Pod) -> Vec<Container> {
    let spec = pod::spec(pod);
    let init = spec.init_containers.iter().flatten().cloned();
    init.chain(spec.containers.iter().cloned()).chain(pod::ephemeral_containers(spec)).collect()
}

/// Returns the AppArmor profile of a container: from its security context, else from its annotation, else
/// from the pod's security context; `None` if all are unset.
pub fn apparmor(pod: &Pod, container: &Container) -> Option<AppArmorProfile> {
    let own = container.security_context.as_ref().and_then(|s| s.app_armor_profile.clone());
    let annotation = || {
        let annotations = pod.metadata.annotations.as_ref()?;
        let value = annotations.get(&format!("{APPARMOR_ANNOTATION}{}", container.name))?;
        let profile = |type_: &str, name: Option<&str>| AppArmorProfile {
            type_: type_.to_owned(),
            localhost_profile: name.map(str::to_owned),
        };
        match value.as_str() {
            "runtime/default" => Some(profile("RuntimeDefault", None)),
            "unconfined" => Some(profile("Unconfined", None)),
            other => other.strip_prefix("localhost/").map(|name| profile("Localhost", Some(name))),
        }
    };
    let of_pod = || pod::spec(pod).security_context.as_ref().and_then(|s| s.app_armor_profile.clone());
    own.or_else(annotation).or_else(of_pod)
}

/// Converts an AppArmor profile to its CRI form; `None` leaves the choice to the runtime.
pub fn apparmor_profile(profile: Option<&AppArmorProfile>) -> Option<SecurityProfile> {
    let profile = profile?;
    let (kind, name) = match profile.type_.as_str() {
        "RuntimeDefault" => (ProfileType::RuntimeDefault, None),
        "Localhost" => (ProfileType::Localhost, profile.localhost_profile.clone()),
        _ => (ProfileType::Unconfined, None),
    };
    Some(SecurityProfile { profile_type: kind as i32, localhost_ref: name.unwrap_or_default() })
}

/// Returns the seccomp profile of a container: its own, else the pod's, else the runtime's default (kubelet's
/// `seccompDefault`); Unconfined for a privileged container that sets none. Localhost profiles are files
/// below `root`.
pub fn seccomp(pod: &Pod, container: &Container, root: &Path) -> Result<SecurityProfile, String> {
    let own = container.security_context.as_ref();
    let of_pod = pod::spec(pod).security_context.as_ref();
    let asked: Option<&SeccompProfile> = own
        .and_then(|s| s.seccomp_profile.as_ref())
        .or_else(|| of_pod.and_then(|s| s.seccomp_profile.as_ref()));
    let privileged = own.and_then(|s| s.privileged).unwrap_or(false);
    let (kind, file) = match asked.map(|profile| profile.type_.as_str()) {
        None if privileged => (ProfileType::Unconfined, String::new()),
        None | Some("RuntimeDefault") => (ProfileType::RuntimeDefault, String::new()),
        Some("Localhost") => {
            let name = asked.and_then(|p| p.localhost_profile.as_deref()).filter(|name| !name.is_empty());
            let name = name.ok_or("localhostProfile must be set if seccompProfile type is Localhost.")?;
            if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(format!(
                    "invalid localhostProfile \"{name}\": must be a relative path without '..'"
                ));
            }
            (ProfileType::Localhost, root.join(name).to_string_lossy().into_owned())
        }
        Some(_) => (ProfileType::Unconfined, String::new()),
    };
    Ok(SecurityProfile { profile_type: kind as i32, localhost_ref: file })
}

/// Decides from a mount's `recursiveReadOnly` whether its submounts are read-only too; `supported` says
/// whether the runtime can do that.
pub fn recursive_read_only(mount: &VolumeMount, supported: bool) -> Result<bool, String> {
    let mode = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
    let fail = |text: String| Err(format!("failed to resolve recursive read-only mode: {text}"));
    let asked = format!("volume \"{}\" requested recursive read-only mode, but it is not", mount.name);
    if mode == "Disabled" {
        return Ok(false);
    }
    if mount.read_only != Some(true) {
        return fail(format!("{asked} read-only"));
    }
    if let Some(propagation) = mount.mount_propagation.as_deref().filter(|p| *p != "None") {
        return fail(format!("{asked} compatible with propagation \"{propagation}\""));
    }
    match mode {
        "IfPossible" => Ok(supported),
        "Enabled" if supported => Ok(true),
        "Enabled" => fail(format!("{asked} supported by the runtime")),
        other => fail(format!("unknown recursive read-only mode \"{other}\"")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn nothing() -> Abilities {
        Abilities {
            no_apparmor: Some("AppArmor is not enabled on the host"),
            selinux: false,
            strict_groups: false,
            recursive_read_only: false,
        }
    }

    #[test]
    fn a_pod_that_asks_for_what_the_node_cannot_give_is_refused_with_kubelets_reason() {
        let container = json!([{"name": "c"}]);
        let cases = [
            (
                json!({"containers": container, "securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}),
                "AppArmor",
                "Cannot enforce AppArmor: AppArmor is not enabled on the host",
            ),
            (
                json!({"containers": [{"name": "c", "securityContext": {"appArmorProfile": {"type": "Localhost", "localhostProfile": "x"}}}]}),
                "AppArmor",
                "Cannot enforce AppArmor: AppArmor is not enabled on the host",
            ),
            (
                json!({"containers": container, "securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
                "SysctlForbidden",
                "forbidden sysctl: \"kernel.msgmax\" not allowlisted",
            ),
            (
                json!({"containers": container, "hostNetwork": true,
                    "securityContext": {"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}]}}),
                "SysctlForbidden",
                "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled",
            ),
            (
                json!({"containers": container, "securityContext": {"supplementalGroupsPolicy": "Strict"}}),
                "SupplementalGroupsPolicyNotSupported",
                "SupplementalGroupsPolicy=Strict is not supported in this node",
            ),
            (
                json!({"containers": container, "os": {"name": "windows"}}),
                "PodOSNotSupported",
                "Failed to admit pod as the OS field doesn't match node OS",
            ),
            (
                json!({"containers": container, "resources": {"limits": {"cpu": "1"}}}),
                "PodLevelResourcesNotSupported",
                "pod-level resources are not supported on the node",
            ),
        ];
        for (spec, reason, message) in cases {
            let rejection = admit(&pod(spec), &nothing()).unwrap_err();
            assert_eq!((rejection.reason.as_str(), rejection.message.as_str()), (reason, message));
        }
        let mut annotated = pod(json!({"containers": container}));
        let annotation = format!("{APPARMOR_ANNOTATION}c");
        annotated.metadata.annotations = Some([(annotation, "runtime/default".to_owned())].into());
        assert_eq!(admit(&annotated, &nothing()).unwrap_err().reason, "AppArmor");
        let able =
            Abilities { no_apparmor: None, selinux: true, strict_groups: true, recursive_read_only: true };
        assert!(admit(&annotated, &able).is_ok());
        for harmless in [
            json!({"containers": container, "os": {"name": "linux"}}),
            json!({"containers": container, "securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
            json!({"containers": container, "securityContext": {"supplementalGroupsPolicy": "Merge",
                   "sysctls": [{"name": "net/ipv4/ip_unprivileged_port_start", "value": "0"}]}}),
        ] {
            assert!(admit(&pod(harmless.clone()), &nothing()).is_ok(), "{harmless}");
        }
    }

    #[test]
    fn user_namespaces_and_selinux_labels_make_no_sandbox() {
        let text = |spec: Value| sandbox(&pod(spec), &nothing()).unwrap_err();
        assert_eq!(
            text(json!({"containers": [], "hostUsers": false})),
            "can't set `spec.hostUsers: false`, runtime does not support user namespaces"
        );
        let label = json!({"seLinuxOptions": {"level": "s0:c1,c2"}});
        assert!(text(json!({"containers": [], "securityContext": label})).contains("seLinuxOptions"));
        assert!(
            text(json!({"containers": [{"name": "c", "securityContext": label}]})).contains("seLinuxOptions")
        );
        assert!(sandbox(&pod(json!({"containers": [], "hostUsers": true})), &nothing()).is_ok());
    }

    #[test]
    fn seccomp_is_the_runtimes_default_unless_something_else_is_asked_for() {
        let profile = |pod_level: Value, own: Value| {
            let pod = pod(
                json!({"containers": [{"name": "c", "securityContext": own}], "securityContext": pod_level}),
            );
            let profile = seccomp(&pod, &pod::spec(&pod).containers[0], Path::new("/root"))?;
            Ok::<_, String>((profile.profile_type(), profile.localhost_ref))
        };
        let of_type = |type_: &str| json!({"seccompProfile": {"type": type_}});
        let local = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"}});
        let default = (ProfileType::RuntimeDefault, String::new());
        let unconfined = (ProfileType::Unconfined, String::new());
        assert_eq!(profile(json!({}), json!({})).unwrap(), default);
        assert_eq!(profile(of_type("Unconfined"), json!({})).unwrap(), unconfined);
        assert_eq!(profile(of_type("Unconfined"), of_type("RuntimeDefault")).unwrap(), default);
        assert_eq!(profile(json!({}), local).unwrap(), (ProfileType::Localhost, "/root/a.json".to_owned()));
        assert_eq!(profile(json!({}), json!({"privileged": true})).unwrap(), unconfined);
        assert!(profile(json!({}), of_type("Localhost")).is_err());
    }

    #[test]
    fn recursive_read_only_is_honoured_or_refused() {
        let mount = |fields: Value| {
            let mut mount = json!({"name": "v", "mountPath": "/v", "readOnly": true});
            for (key, value) in fields.as_object().unwrap() {
                mount[key] = value.clone();
            }
            serde_json::from_value::<VolumeMount>(mount).unwrap()
        };
        let enabled = mount(json!({"recursiveReadOnly": "Enabled"}));
        assert_eq!(recursive_read_only(&enabled, true), Ok(true));
        assert_eq!(
            recursive_read_only(&enabled, false).unwrap_err(),
            "failed to resolve recursive read-only mode: volume \"v\" requested recursive read-only mode, but it is not \
             supported by the runtime"
        );
        assert_eq!(recursive_read_only(&mount(json!({"recursiveReadOnly": "IfPossible"})), false), Ok(false));
        let writable = mount(json!({"recursiveReadOnly": "Enabled", "readOnly": false}));
        assert!(recursive_read_only(&writable, true).unwrap_err().ends_with("but it is not read-only"));
        assert_eq!(recursive_read_only(&mount(json!({})), true), Ok(false));
    }
}
