//! Builds the CRI configuration of a pod's sandbox.

use std::collections::HashMap;
use std::path::PathBuf;

use k8s_cri::v1::{
    Int64Value, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol, SecurityProfile,
    security_profile::ProfileType,
};
use k8s_openapi::api::core::v1::Pod;

use crate::config::AgentConfig;
use crate::context::Context;
use crate::cri::labels;
use crate::{Error, dns, hosts, pod, resources};

/// Returns the directory for the logs of a pod's containers.
pub fn log_directory(config: &AgentConfig, pod: &Pod) -> PathBuf {
    config.pod_log_dir.join(format!("{}_{}_{}", pod::namespace(pod), pod::name(pod), pod::uid(pod)))
}

/// Builds the configuration of the pod's sandbox for this attempt.
pub fn config(context: &Context, pod: &Pod, attempt: u32) -> Result<PodSandboxConfig, Error> {
    let agent = &context.config;
    let spec = pod::spec(pod);
    let (hostname, domain) = hosts::names(pod, &agent.cluster_domain);
    let hostname = if spec.set_hostname_as_fqdn.unwrap_or(false) && !domain.is_empty() {
        let full = format!("{hostname}.{domain}");
        if full.len() > 64 {
            return Err(Error::Invalid(format!(
                "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long \
                 (64 characters is the max, {} characters requested)",
                full.len()
            )));
        }
        full
    } else {
        hostname
    };
    let host_network = spec.host_network.unwrap_or(false);
    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: pod::name(pod).to_owned(),
            uid: pod::uid(pod).to_owned(),
            namespace: pod::namespace(pod).to_owned(),
            attempt,
        }),
        hostname: if host_network { String::new() } else { hostname },
        log_directory: log_directory(agent, pod).to_string_lossy().into_owned(),
        dns_config: Some(dns::config(agent, pod)),
        port_mappings: if host_network { Vec::new() } else { port_mappings(pod) },
        labels: labels::pod_labels(
            pod::name(pod),
            pod::namespace(pod),
            pod::uid(pod),
            pod.metadata.labels.as_ref(),
        ),
        annotations: annotations(pod),
        linux: Some(linux(agent, pod)),
        ..Default::default()
    })
}

fn annotations(pod: &Pod) -> HashMap<String, String> {
    let own = pod.metadata.annotations.iter().flatten();
    let mut annotations: HashMap<String, String> = own.map(|(k, v)| (k.clone(), v.clone())).collect();
    annotations.insert(labels::CONFIG_SOURCE.to_owned(), "api".to_owned());
    annotations.insert(labels::CONFIG_SEEN.to_owned(), crate::clock::now().0.to_string());
    annotations
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    let spec = pod::spec(pod);
    let sidecars = spec.init_containers.iter().flatten().filter(|c| pod::is_sidecar(c));
    let containers = spec.containers.iter().chain(sidecars);
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    ports
        .filter(|port| port.host_port.is_some_and(|p| p > 0))
        .map(|port| PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp as i32,
                Some("SCTP") => Protocol::Sctp as i32,
                _ => Protocol::Tcp as i32,
            },
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

/// Returns which namespaces the pod shares with the node; PID namespaces belong to single containers unless
/// the pod shares one.
pub fn namespaces(pod: &Pod) -> NamespaceOption {
    let spec = pod::spec(pod);
    let mode = |host: Option<bool>| if host.unwrap_or(false) { NamespaceMode::Node } else { NamespaceMode::Pod } as i32;
    let pid = if spec.host_pid.unwrap_or(false) {
        NamespaceMode::Node
    } else if spec.share_process_namespace.unwrap_or(false) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    NamespaceOption {
        network: mode(spec.host_network),
        pid: pid as i32,
        ipc: mode(spec.host_ipc),
        ..Default::default()
    }
}

fn linux(agent: &AgentConfig, pod: &Pod) -> LinuxPodSandboxConfig {
    let spec = pod::spec(pod);
    let security = spec.security_context.as_ref();
    let int = |value: Option<i64>| value.map(|value| Int64Value { value });
    let mut groups = security.and_then(|s| s.supplemental_groups.clone()).unwrap_or_default();
    groups.extend(security.and_then(|s| s.fs_group));
    let privileged = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .any(|c| c.security_context.as_ref().and_then(|s| s.privileged).unwrap_or(false));
    LinuxPodSandboxConfig {
        cgroup_parent: resources::cgroup_parent(&agent.cgroup_root, pod),
        security_context: Some(LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces(pod)),
            run_as_user: int(security.and_then(|s| s.run_as_user)),
            run_as_group: int(security.and_then(|s| s.run_as_user.and(s.run_as_group))),
            supplemental_groups: groups,
            privileged,
            // RuntimeDefault whatever the containers have, as in kubelet: the sandbox itself needs no more.
            seccomp: Some(SecurityProfile {
                profile_type: ProfileType::RuntimeDefault as i32,
                localhost_ref: String::new(),
            }),
            ..Default::default()
        }),
        sysctls: security
            .and_then(|s| s.sysctls.as_ref())
            .into_iter()
            .flatten()
            .map(|s| (s.name.clone(), s.value.clone()))
            .collect(),
        overhead: None,
        resources: Some(resources::pod_resources(pod)),
    }
}
