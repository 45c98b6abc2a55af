//! Enforces NodePorts: two pods on a node cannot use the same host port.

use crate::plugins::{Cycle, Filter, NodeFilter, Rejection};
use crate::snapshot::HostPort;

const ANY: &str = "0.0.0.0";

pub(crate) struct NodePorts;

impl Filter for NodePorts {
    fn prepare<'a>(&self, cycle: &'a Cycle<'_>) -> Option<NodeFilter<'a>> {
        let wanted = &cycle.pod.host_ports;
        if wanted.is_empty() {
            return None;
        }
        Some(Box::new(move |info| {
            let mut taken = info.pods.values().flat_map(|pod| &pod.host_ports);
            let conflict = taken.any(|taken| wanted.iter().any(|wanted| collide(wanted, taken)));
            conflict.then(|| Rejection::one("node(s) didn't have free ports for the requested pod ports"))
        }))
    }
}

/// Whether two host ports conflict: same protocol and port, on the same address or one on all addresses.
fn collide(left: &HostPort, right: &HostPort) -> bool {
    left.1 == right.1 && left.2 == right.2 && (left.0 == right.0 || left.0 == ANY || right.0 == ANY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_on_all_addresses_collides_with_one_on_any() {
        let port = |ip: &str, protocol: &str, number| (ip.to_owned(), protocol.to_owned(), number);
        assert!(collide(&port(ANY, "TCP", 80), &port("10.0.0.1", "TCP", 80)));
        assert!(!collide(&port("10.0.0.2", "TCP", 80), &port("10.0.0.1", "TCP", 80)));
        assert!(!collide(&port(ANY, "TCP", 80), &port(ANY, "UDP", 80)));
    }
}
