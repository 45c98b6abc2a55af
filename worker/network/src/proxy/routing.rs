//! Computes routing from Services and EndpointSlices: for each service port, the endpoints that its packets
//! may go to. Pure and deterministic; chooses endpoints as kube-proxy does (KEP-1669, KEP-2086).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

use crate::cluster_state::{ClusterContent, EndpointView, ObjectKey, Protocol, ServicePortView, ServiceView};

/// Address and port that a packet may be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointAddress {
    /// Endpoint address.
    pub ip: Ipv4Addr,
    /// Endpoint port.
    pub port: u16,
}

/// Identity of a service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortKey {
    /// The Service.
    pub service: ObjectKey,
    /// Port number, which with the protocol is unique within a Service (names may change).
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// Routing of one service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedPort {
    /// Identity of the service port.
    pub key: PortKey,
    /// The ClusterIP.
    pub cluster_ip: Ipv4Addr,
    /// Port on every node; `None` if the service port has no node port.
    pub node_port: Option<u16>,
    /// External and load balancer addresses, whose packets are treated as traffic from outside.
    pub external_ips: BTreeSet<Ipv4Addr>,
    /// Load balancer addresses among `external_ips` that only some sources may reach, and those
    /// sources; `None` if all may.
    pub guarded: Option<(BTreeSet<Ipv4Addr>, BTreeSet<Ipv4Net>)>,
    /// Endpoints on any node.
    pub cluster: BTreeSet<EndpointAddress>,
    /// Endpoints on this node; empty unless a traffic policy is `Local`.
    pub local: BTreeSet<EndpointAddress>,
    /// Whether traffic from inside the cluster goes to `local` only.
    pub internal_local: bool,
    /// Whether traffic from outside goes to `local` only and keeps its source address.
    pub external_local: bool,
    /// Seconds for which a client keeps its endpoint (session affinity); `None` without affinity.
    pub affinity_seconds: Option<u32>,
    /// Endpoints on this node or without a node name, which may connect to themselves through the service.
    pub hairpin: BTreeSet<Ipv4Addr>,
}

/// Endpoints that replace those of a Service on this node: for `default/kubernetes` the local
/// balancer in front of the masters.
pub type Overrides = BTreeMap<ObjectKey, Vec<EndpointAddress>>;

/// Computes all routing of a node. `node` is this node's name, which decides what is local. Services with an
/// address in `served_here` (the cluster DNS) are left out, because this node answers there itself.
pub fn route(
    content: &ClusterContent,
    node: &str,
    served_here: &BTreeSet<Ipv4Addr>,
    overrides: &Overrides,
) -> Vec<RoutedPort> {
    let mut routed = Vec::new();
    for (key, service) in &content.services {
        let Some(cluster_ip) = service.cluster_ip else { continue };
        if service.foreign_proxy || served_here.contains(&cluster_ip) {
            continue;
        }
        for port in &service.ports {
            let endpoints = match overrides.get(key) {
                Some(backends) => overridden(backends),
                None => endpoints(content, key, port),
            };
            routed.push(route_port(key, service, cluster_ip, port, endpoints, node));
        }
    }
    routed
}

type Candidates = Vec<(EndpointAddress, EndpointView)>;

fn overridden(backends: &[EndpointAddress]) -> Candidates {
    let view = |backend: &EndpointAddress| EndpointView {
        ip: backend.ip,
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        hostname: None,
    };
    backends.iter().map(|backend| (*backend, view(backend))).collect()
}

/// Returns the endpoints of a service port from all its slices; slice ports match by name and protocol.
fn endpoints(content: &ClusterContent, key: &ObjectKey, port: &ServicePortView) -> Candidates {
    let mut found = Vec::new();
    for slice in content.slices.get(key).into_iter().flat_map(|slices| slices.values()) {
        let numbers =
            slice.ports.iter().filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
        for (_, _, number) in numbers {
            for endpoint in &slice.endpoints {
                found.push((EndpointAddress { ip: endpoint.ip, port: *number }, endpoint.clone()));
            }
        }
    }
    found
}

fn route_port(
    key: &ObjectKey,
    service: &ServiceView,
    cluster_ip: Ipv4Addr,
    port: &ServicePortView,
    endpoints: Candidates,
    node: &str,
) -> RoutedPort {
    let is_local = |endpoint: &EndpointView| endpoint.node.as_deref() == Some(node);
    let external = port.node_port.is_some() || !service.external_ips.is_empty();
    let needs_local = service.internal_local || (service.external_local && external);
    let cluster = usable(endpoints.iter());
    let local = if needs_local {
        usable(endpoints.iter().filter(|(_, endpoint)| is_local(endpoint)))
    } else {
        BTreeSet::new()
    };
    let hairpin = endpoints
        .iter()
        .filter(|(_, endpoint)| is_local(endpoint) || endpoint.node.is_none())
        .map(|(backend, _)| backend.ip)
        .collect();
    RoutedPort {
        key: PortKey { service: key.clone(), port: port.port, protocol: port.protocol },
        cluster_ip,
        node_port: port.node_port,
        external_ips: service.external_ips.clone(),
        guarded: service
            .source_ranges
            .clone()
            .filter(|_| !service.load_balancer_ips.is_empty())
            .map(|ranges| (service.load_balancer_ips.clone(), ranges)),
        cluster,
        local,
        internal_local: service.internal_local,
        external_local: service.external_local && external,
        affinity_seconds: service.affinity_seconds,
        hairpin,
    }
}

/// Returns the ready endpoints; if there are none, those that are terminating but still serving.
fn usable<'a>(
    candidates: impl Iterator<Item = &'a (EndpointAddress, EndpointView)> + Clone,
) -> BTreeSet<EndpointAddress> {
    let pick = |wanted: fn(&EndpointView) -> bool| -> BTreeSet<EndpointAddress> {
        candidates.clone().filter(|(_, endpoint)| wanted(endpoint)).map(|(backend, _)| *backend).collect()
    };
    let ready = pick(|endpoint| endpoint.ready);
    if ready.is_empty() { pick(|endpoint| endpoint.serving && endpoint.terminating) } else { ready }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_state::SliceView;

    fn service(ports: &[(&str, u16, Option<u16>)]) -> ServiceView {
        let ports = ports.iter().map(|(name, port, node_port)| ServicePortView {
            name: name.to_string(),
            protocol: Protocol::Tcp,
            port: *port,
            node_port: *node_port,
        });
        ServiceView {
            cluster_ip: Some(Ipv4Addr::new(10, 96, 7, 7)),
            ports: ports.collect(),
            ..ServiceView::default()
        }
    }

    fn endpoint(last: u8, ready: bool, terminating: bool, node: &str) -> EndpointView {
        EndpointView {
            ip: Ipv4Addr::new(10, 42, 0, last),
            ready,
            serving: true,
            terminating,
            node: Some(node.into()),
            hostname: None,
        }
    }

    fn content(service: ServiceView, endpoints: Vec<EndpointView>) -> ClusterContent {
        let mut content = ClusterContent::default();
        let key = ObjectKey::new("default", "web");
        content.put_service(key.clone(), service);
        let slice = SliceView { ports: vec![("http".into(), Protocol::Tcp, 8080)], endpoints };
        content.put_slice(ObjectKey::new("default", "web-x"), Some(key), slice);
        content
    }

    fn only(content: &ClusterContent) -> RoutedPort {
        let mut routed = route(content, "here", &BTreeSet::new(), &Overrides::new());
        assert_eq!(routed.len(), 1);
        routed.remove(0)
    }

    fn ips(backends: &BTreeSet<EndpointAddress>) -> Vec<u8> {
        backends.iter().map(|backend| backend.ip.octets()[3]).collect()
    }

    #[test]
    fn only_ready_endpoints_get_traffic() {
        let endpoints = vec![endpoint(2, true, false, "here"), endpoint(3, false, false, "there")];
        assert_eq!(ips(&only(&content(service(&[("http", 80, None)]), endpoints)).cluster), [2]);
    }

    #[test]
    fn endpoints_that_serve_while_terminating_are_the_last_resort() {
        let terminating = endpoint(3, false, true, "there");
        let service = service(&[("http", 80, None)]);
        let both = content(service.clone(), vec![endpoint(2, true, false, "here"), terminating.clone()]);
        assert_eq!(ips(&only(&both).cluster), [2]);
        assert_eq!(ips(&only(&content(service, vec![terminating])).cluster), [3]);
    }

    #[test]
    fn local_policies_see_the_endpoints_of_this_node_alone() {
        let mut local = service(&[("http", 80, Some(30080))]);
        local.external_local = true;
        let endpoints = vec![endpoint(2, true, false, "here"), endpoint(3, true, false, "there")];
        let routed = only(&content(local, endpoints));
        assert_eq!((ips(&routed.cluster), ips(&routed.local)), (vec![2, 3], vec![2]));
        assert!(routed.external_local && !routed.internal_local);
    }

    #[test]
    fn a_port_takes_the_endpoints_of_its_own_name() {
        let endpoints = vec![endpoint(2, true, false, "here")];
        let routed = only(&content(service(&[("metrics", 9090, None)]), endpoints));
        assert!(routed.cluster.is_empty());
    }

    #[test]
    fn headless_foreign_and_locally_served_services_are_not_routed() {
        let mut headless = service(&[("http", 80, None)]);
        headless.cluster_ip = None;
        let mut foreign = service(&[("http", 80, None)]);
        foreign.foreign_proxy = true;
        for view in [headless, foreign] {
            assert!(route(&content(view, vec![]), "here", &BTreeSet::new(), &Overrides::new()).is_empty());
        }
        let dns = BTreeSet::from([Ipv4Addr::new(10, 96, 7, 7)]);
        let served = content(service(&[("http", 80, None)]), vec![]);
        assert!(route(&served, "here", &dns, &Overrides::new()).is_empty());
    }

    #[test]
    fn an_override_replaces_the_endpoints() {
        let content = content(service(&[("http", 80, None)]), vec![endpoint(2, true, false, "here")]);
        let local = EndpointAddress { ip: Ipv4Addr::new(10, 42, 0, 1), port: 6443 };
        let overrides = Overrides::from([(ObjectKey::new("default", "web"), vec![local])]);
        let routed = route(&content, "here", &BTreeSet::new(), &overrides);
        assert_eq!(routed[0].cluster, BTreeSet::from([local]));
    }
}
