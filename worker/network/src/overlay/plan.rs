//! The pure part of the overlay: computes the participating hosts and the kernel entries that they need.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use ipnet::Ipv4Net;

use super::{host, overlay_address, vtep_address, vtep_mac};
use crate::{
    cluster_state::NodeView,
    netlink::{Mac, NextHop, Route},
};

/// Another host in the overlay.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The host's address in the underlay network.
    pub host: Ipv4Addr,
    /// The host's podCIDR; `None` for a master, or a node that has no podCIDR yet.
    pub pod_cidr: Option<Ipv4Net>,
}

/// Entries that the kernel needs for the overlay device of this host: address, neighbours, forwarding,
/// routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayPlan {
    /// This host's own address on the device; `None` only in an empty plan.
    pub address: Option<Ipv4Addr>,
    /// Neighbour entries: endpoint address and hardware address.
    pub neighbours: BTreeSet<(Ipv4Addr, Mac)>,
    /// Forwarding entries: remote host and hardware address.
    pub forwarding: BTreeSet<(Ipv4Addr, Mac)>,
    /// Routes.
    pub routes: BTreeSet<Route>,
}

/// Returns the other hosts: all Nodes but `own_name`, and masters without a Node. Loopback addresses (several
/// masters on one host, for development) are left out. If the endpoint addresses of two hosts clash, the
/// second host is left out and returned in the second value.
pub fn peers(
    own_name: &str,
    own_host: Ipv4Addr,
    nodes: &BTreeMap<Arc<str>, NodeView>,
    masters: &[SocketAddr],
) -> (Vec<Peer>, Vec<Ipv4Addr>) {
    let nodes = nodes
        .iter()
        .filter(|(name, _)| name.as_ref() != own_name)
        .filter_map(|(_, node)| Some(Peer { host: node.ip?, pod_cidr: node.pod_cidr }));
    let masters = masters.iter().filter_map(|address| match address.ip() {
        IpAddr::V4(host) => Some(Peer { host, pod_cidr: None }),
        IpAddr::V6(_) => None,
    });
    let (mut found, mut clashing) = (BTreeMap::new(), Vec::new());
    for peer in nodes.chain(masters) {
        if peer.host == own_host || peer.host.is_loopback() || peer.host.is_unspecified() {
            continue;
        }
        match found.get(&vtep_address(peer.host)) {
            Some(Peer { host, .. }) if *host != peer.host => clashing.push(peer.host),
            Some(_) => {}
            None => {
                found.insert(vtep_address(peer.host), peer);
            }
        }
    }
    (found.into_values().collect(), clashing)
}

/// Returns the kernel entries for these peers. `pod_cidr` is this node's own, if it runs pods.
pub fn plan(
    index: u32,
    own_host: Ipv4Addr,
    pod_cidr: Option<Ipv4Net>,
    service_cidr: Ipv4Net,
    peers: &[Peer],
) -> OverlayPlan {
    let address = overlay_address(own_host, pod_cidr);
    let source = Some(address);
    let mut plan = OverlayPlan { address: Some(address), ..OverlayPlan::default() };
    // Locally generated packets are routed before nftables sees them: without a route to the service range
    // they would fail at once on a host without a default route, or leave with the wrong source address.
    plan.routes.insert(Route { destination: service_cidr, hop: NextHop::Device(index), source });
    if let Some(own) = pod_cidr {
        // Packets to unused pod addresses get an error at once instead of a loop or a timeout.
        plan.routes.insert(Route { destination: own, hop: NextHop::Unreachable, source: None });
    }
    for peer in peers {
        let (endpoint, mac) = (vtep_address(peer.host), vtep_mac(peer.host));
        plan.neighbours.insert((endpoint, mac));
        plan.forwarding.insert((peer.host, mac));
        plan.routes.insert(Route { destination: host(endpoint), hop: NextHop::Device(index), source });
        if let Some(pods) = peer.pod_cidr.filter(|pods| Some(*pods) != pod_cidr) {
            plan.routes.insert(Route { destination: pods, hop: NextHop::Via(endpoint, index), source });
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ip: &str, cidr: &str) -> NodeView {
        NodeView { ip: ip.parse().ok(), pod_cidr: cidr.parse().ok() }
    }

    #[test]
    fn peers_are_the_other_nodes_and_masters_that_are_no_nodes() {
        let nodes = BTreeMap::from([
            ("a".into(), node("10.0.0.1", "10.42.0.0/24")),
            ("b".into(), node("10.0.0.2", "10.42.1.0/24")),
        ]);
        let masters: Vec<SocketAddr> =
            ["10.0.0.2:6443", "10.0.0.9:6443", "127.0.0.1:6443"].map(|a| a.parse().unwrap()).into();
        let (peers, clashing) = peers("a", Ipv4Addr::new(10, 0, 0, 1), &nodes, &masters);
        assert!(clashing.is_empty());
        let hosts: Vec<_> = peers.iter().map(|peer| (peer.host.to_string(), peer.pod_cidr)).collect();
        assert_eq!(hosts, [("10.0.0.2".into(), "10.42.1.0/24".parse().ok()), ("10.0.0.9".to_string(), None)]);
    }

    #[test]
    fn hosts_whose_endpoints_clash_are_reported_not_mixed_up() {
        let nodes = BTreeMap::from([
            ("b".into(), node("10.0.0.2", "10.42.1.0/24")),
            ("c".into(), node("26.0.0.2", "10.42.2.0/24")),
        ]);
        let (peers, clashing) = peers("a", Ipv4Addr::new(10, 0, 0, 1), &nodes, &[]);
        assert_eq!(peers.len(), 1);
        assert_eq!(clashing, [Ipv4Addr::new(26, 0, 0, 2)]);
    }

    #[test]
    fn private_ranges_never_clash() {
        let ends: BTreeSet<_> =
            ["10.1.2.3", "172.17.2.3", "192.168.2.3"].map(|ip| vtep_address(ip.parse().unwrap())).into();
        assert_eq!(ends.len(), 3);
    }

    #[test]
    fn a_master_gets_no_pod_route_and_its_own_endpoint_address() {
        let own = Ipv4Addr::new(10, 0, 0, 9);
        let peers = [Peer { host: Ipv4Addr::new(10, 0, 0, 2), pod_cidr: "10.42.1.0/24".parse().ok() }];
        let plan = plan(7, own, None, "10.96.0.0/16".parse().unwrap(), &peers);
        assert_eq!(plan.address, Some(Ipv4Addr::new(250, 0, 0, 9)));
        assert!(!plan.routes.iter().any(|route| route.hop == NextHop::Unreachable));
        assert_eq!(plan.routes.len(), 3);
    }
}
