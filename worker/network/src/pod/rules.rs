//! nftables table `ip ephor-node`: host ports, masquerading of packets that leave the pod network, and rules
//! that protect the node's own services. Builds scripts as text; `pod` applies them.

use std::{collections::BTreeSet, fmt::Write, net::Ipv4Addr};

use super::{PodParameters, PortMapping, VETH_PREFIX};
use crate::{ipam::Reservation, nft, overlay::VTEP_RANGE};

/// Name of the nftables table.
pub(crate) const TABLE: &str = "ephor-node";

/// Returns the script for the whole table, which replaces an earlier table in the same transaction.
pub(super) fn table(parameters: &PodParameters, held: &[(Ipv4Addr, Reservation)]) -> String {
    let PodParameters { pod_cidr, cluster_cidr, gateway, overlay_device, .. } = parameters;
    let t = format!("ip {TABLE}");
    let inside = format!("{{ {cluster_cidr}, {VTEP_RANGE} }}");
    let protected = protected(&t, parameters);
    let mut script = format!(
        "add table {t}
delete table {t}
add table {t}
add map {t} host-ports {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add map {t} host-ports-of-ip {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
add set {t} with-host-ports {{ type ipv4_addr . ipv4_addr; }}
add chain {t} to-host-ports
{protected}add rule {t} to-host-ports dnat ip to ip daddr . meta l4proto . th dport map @host-ports-of-ip
add rule {t} to-host-ports dnat ip to meta l4proto . th dport map @host-ports
add chain {t} guard {{ type filter hook prerouting priority -300; }}
add rule {t} guard iifname \"{VETH_PREFIX}*\" ip daddr 127.0.0.0/8 drop comment \"pods do not reach the host's loopback\"
add chain {t} prerouting {{ type nat hook prerouting priority -101; }}
add rule {t} prerouting fib daddr type local meta l4proto {{ tcp, udp }} jump to-host-ports
add chain {t} output {{ type nat hook output priority -101; }}
add rule {t} output fib daddr type local meta l4proto {{ tcp, udp }} jump to-host-ports
add chain {t} postrouting {{ type nat hook postrouting priority 101; }}
add rule {t} postrouting ip saddr . ip daddr @with-host-ports snat ip to {gateway} fully-random comment \"a pod reaching itself\"
add rule {t} postrouting oifname \"{VETH_PREFIX}*\" ip saddr 127.0.0.0/8 snat ip to {gateway} fully-random
add rule {t} postrouting oifname \"{overlay_device}\" ip saddr != {inside} snat ip to {gateway} fully-random
add rule {t} postrouting ip saddr {{ {pod_cidr} }} ip daddr != {inside} ip daddr != 224.0.0.0/4 oifname != \"lo\" masquerade fully-random
"
    );
    let mut taken = BTreeSet::new();
    for (address, reservation) in held {
        let ports = reservation.ports.iter().filter(|port| taken.insert(element(port))).cloned();
        let ports: Vec<_> = ports.collect();
        if !ports.is_empty() {
            script.push_str(&add_ports(*address, &ports));
        }
    }
    script
}

/// Returns rules that prevent host ports from capturing what the node itself serves to pods and to its agent.
fn protected(table: &str, parameters: &PodParameters) -> String {
    let set = |items: Vec<String>| format!("{{ {} }}", items.join(", "));
    let mut rules = String::new();
    if !parameters.protected_addresses.is_empty() {
        let addresses = set(parameters.protected_addresses.iter().map(ToString::to_string).collect());
        let _infallible = writeln!(rules, "add rule {table} to-host-ports ip daddr {addresses} return");
    }
    if !parameters.protected_loopback_ports.is_empty() {
        let ports = set(parameters.protected_loopback_ports.iter().map(ToString::to_string).collect());
        let _infallible =
            writeln!(rules, "add rule {table} to-host-ports ip daddr 127.0.0.0/8 tcp dport {ports} return");
    }
    rules
}

/// Returns the script that adds the host ports of the pod at `address`. nftables refuses a port that another
/// pod still has; attaching the sandbox is then retried until that pod is gone.
pub(super) fn add_ports(address: Ipv4Addr, ports: &[PortMapping]) -> String {
    let mut script = format!("add element ip {TABLE} with-host-ports {{ {address} . {address} }}\n");
    for port in ports {
        let (map, key) = element(port);
        let value = format!("{address} . {}", port.container_port);
        let _infallible = writeln!(script, "add element ip {TABLE} {map} {{ {key} : {value} }}");
    }
    script
}

/// Removes the pod's host ports; ignores entries that are missing or belong to another pod by now.
pub(super) async fn remove_ports(address: Ipv4Addr, ports: &[PortMapping]) -> Result<(), nft::Error> {
    for port in ports {
        let (map, key) = element(port);
        let value = format!("{address} . {}", port.container_port);
        ignore_refused(
            nft::apply(&format!("delete element ip {TABLE} {map} {{ {key} : {value} }}\n")).await,
        )?;
    }
    ignore_refused(
        nft::apply(&format!("delete element ip {TABLE} with-host-ports {{ {address} . {address} }}\n")).await,
    )
}

fn element(port: &PortMapping) -> (&'static str, String) {
    let key = format!("{} . {}", port.protocol.as_str(), port.host_port);
    match port.host_ip {
        Some(ip) if !ip.is_unspecified() => ("host-ports-of-ip", format!("{ip} . {key}")),
        _ => ("host-ports", key),
    }
}

fn ignore_refused(result: Result<(), nft::Error>) -> Result<(), nft::Error> {
    match result {
        Err(nft::Error::Refused(_)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports_pass_by_what_the_node_itself_serves() {
        let parameters = PodParameters {
            pod_cidr: "10.42.1.0/24".parse().unwrap(),
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            gateway: Ipv4Addr::new(10, 42, 1, 1),
            mtu: 1450,
            overlay_device: "ephor.vx".into(),
            protected_addresses: BTreeSet::from([Ipv4Addr::new(10, 96, 0, 10)]),
            protected_loopback_ports: BTreeSet::from([7443]),
        };
        let script = table(&parameters, &[]);
        let first_lookup = script.find("@host-ports").unwrap();
        for rule in [
            "to-host-ports ip daddr { 10.96.0.10 } return",
            "to-host-ports ip daddr 127.0.0.0/8 tcp dport { 7443 } return",
        ] {
            assert!(script.find(rule).unwrap() < first_lookup, "{rule} comes too late:\n{script}");
        }
    }
}
