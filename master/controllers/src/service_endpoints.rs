//! The endpoints that a Service's pods provide: which pods count, at which addresses, on which ports. Pure;
//! shared by `endpointslice.rs` and `endpoints.rs`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::pod_state::is_terminal;

/// Label of the Endpoints and EndpointSlices of a headless Service.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";

/// Whether the Service is headless: it has no ClusterIP.
pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// Whether the controllers make endpoints for the Service: it has a selector and is no ExternalName.
pub(crate) fn is_selecting(service: &Service) -> bool {
    selector(service).is_some_and(|selector| !selector.is_empty()) && !is_external_name(service)
}

/// Whether the Service is an ExternalName, a DNS alias.
pub(crate) fn is_external_name(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName")
}

/// Returns the Service's selector.
pub(crate) fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    service.spec.as_ref()?.selector.as_ref()
}

/// Whether the Service's selector accepts the pod.
pub(crate) fn is_selected(service: &Service, pod: &Pod) -> bool {
    let Some(selector) = selector(service).filter(|selector| !selector.is_empty()) else { return false };
    let labels = pod.metadata.labels.as_ref();
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// Whether pods that are not ready count as ready endpoints of the Service.
pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true)
}

/// Whether the pod belongs into endpoints at all; terminating pods only `with_terminating`.
pub(crate) fn belongs(pod: &Pod, with_terminating: bool) -> bool {
    !is_terminal(pod)
        && !addresses(pod).is_empty()
        && (with_terminating || pod.metadata.deletion_timestamp.is_none())
}

/// Returns the pod's addresses, the main one first.
pub(crate) fn addresses(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all: Vec<_> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if all.is_empty() { status.pod_ip.as_deref().into_iter().collect() } else { all }
        .into_iter()
        .filter(|ip| !ip.is_empty())
        .collect()
}

/// Returns the pod's first address of a family (`IPv4` or `IPv6`).
pub(crate) fn address_of_family<'a>(pod: &'a Pod, family: &str) -> Option<&'a str> {
    addresses(pod).into_iter().find(|ip| ip.contains(':') == (family == "IPv6"))
}

/// Returns the Service's address families, IPv4 by default.
pub(crate) fn families(service: &Service) -> Vec<String> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    if families.is_empty() { vec!["IPv4".to_owned()] } else { families }
}

/// A port of an endpoint; ordered so that sets of ports can be compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub name: String,
    pub protocol: String,
    pub port: i32,
    pub app_protocol: Option<String>,
}

/// Returns the pod's ports for `service`. A named port that the pod does not have is left out.
pub(crate) fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let mut found: Vec<Port> = ports
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: target_port(port, pod)?,
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    found.sort();
    found
}

fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        Some(IntOrString::Int(0)) | None => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut ports =
        spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .find(|candidate| {
            candidate.name.as_ref() == Some(name)
                && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
        })
        .map(|found| found.container_port)
}

/// Creates a reference to the pod behind an endpoint.
pub(crate) fn target_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// Returns the pod's host name under the Service's domain, if it has one.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|name| !name.is_empty())?;
    let same =
        spec.subdomain == service.metadata.name && service.metadata.namespace == pod.metadata.namespace;
    same.then_some(hostname)
}

/// Whether the change from `old` to `new` can change the pod's endpoints.
pub(crate) fn differs(old: &Pod, new: &Pod) -> bool {
    let spec = |pod: &Pod| {
        pod.spec.as_ref().map(|spec| (spec.node_name.clone(), spec.hostname.clone(), spec.subdomain.clone()))
    };
    old.metadata.labels != new.metadata.labels
        || old.metadata.deletion_timestamp.is_some() != new.metadata.deletion_timestamp.is_some()
        || crate::pod_state::is_ready(old) != crate::pod_state::is_ready(new)
        || is_terminal(old) != is_terminal(new)
        || addresses(old) != addresses(new)
        || spec(old) != spec(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(ports: serde_json::Value) -> Service {
        serde_json::from_value(json!({"spec": {"selector": {"app": "web"}, "ports": ports}})).unwrap()
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"labels": {"app": "web", "x": "y"}},
            "spec": {"containers": [{"name": "c", "ports": [
                {"name": "http", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]},
            "status": {"phase": "Running", "podIP": "10.42.0.2", "podIPs": [{"ip": "10.42.0.2"}]}
        }))
        .unwrap()
    }

    #[test]
    fn ports_follow_numbers_names_and_protocols() {
        let service = service(json!([
            {"name": "a", "port": 80, "targetPort": "http"},
            {"name": "b", "port": 90},
            {"name": "c", "port": 91, "targetPort": 9100},
            {"name": "d", "port": 53, "targetPort": "dns"}
        ]));
        let found: Vec<_> = ports(&service, &pod()).into_iter().map(|port| (port.name, port.port)).collect();
        let expected = [("a", 8080), ("b", 90), ("c", 9100)].map(|(name, port)| (name.to_owned(), port));
        assert_eq!(found, expected, "a TCP port must not find a UDP port of its name");
    }

    #[test]
    fn ended_pods_and_pods_without_address_do_not_belong() {
        assert!(belongs(&pod(), false));
        let mut ended = pod();
        ended.status.get_or_insert_default().phase = Some("Succeeded".to_owned());
        assert!(!belongs(&ended, true));
        let mut homeless = pod();
        homeless.status = None;
        assert!(!belongs(&homeless, true));
        let mut going = pod();
        going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).ok();
        assert!(belongs(&going, true) && !belongs(&going, false));
    }

    #[test]
    fn every_label_of_the_selector_must_match() {
        assert!(is_selected(&service(json!([])), &pod()));
        let mut other = pod();
        other.metadata.labels = None;
        assert!(!is_selected(&service(json!([])), &other));
    }
}
