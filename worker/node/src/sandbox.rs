//! Connects the runtime to the pod network: implements the runtime's [`SandboxNetwork`] with a
//! [`PodNetwork`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use worker_network::PodNetwork;
use worker_runtime::{NetworkError, PodRef, PortMapping, SandboxNetwork};

/// Attaches sandboxes to the node's pod network.
pub struct PodSandboxes(pub Arc<PodNetwork>);

#[async_trait]
impl SandboxNetwork for PodSandboxes {
    async fn attach(
        &self,
        pod: &PodRef,
        netns: &Path,
        ports: &[PortMapping],
    ) -> Result<Vec<IpAddr>, NetworkError> {
        let ports: Vec<_> = ports.iter().filter_map(host_port).collect();
        self.0.attach(&pod.sandbox_id, netns, &ports).await.map_err(|e| NetworkError(e.to_string()))
    }

    async fn detach(&self, pod: &PodRef, _netns: &Path) -> Result<(), NetworkError> {
        self.0.detach(&pod.sandbox_id).await.map_err(|e| NetworkError(e.to_string()))
    }

    async fn retain(&self, live: &BTreeSet<String>) -> Result<usize, NetworkError> {
        self.0.collect_garbage(live).await.map_err(|e| NetworkError(e.to_string()))
    }

    async fn ready(&self) -> Result<(), NetworkError> {
        if self.0.ready().borrow().is_some() {
            return Ok(());
        }
        Err(NetworkError("the node has no podCIDR yet".into()))
    }
}

/// Converts a host port to the network's type; `None` for SCTP, which is not supported, and for a host address
/// of IPv6, which pods do not have (as with the CNI plugin `portmap`).
fn host_port(port: &PortMapping) -> Option<worker_network::PortMapping> {
    let protocol = match port.protocol {
        worker_runtime::Protocol::Tcp => worker_network::Protocol::Tcp,
        worker_runtime::Protocol::Udp => worker_network::Protocol::Udp,
        worker_runtime::Protocol::Sctp => {
            tracing::warn!(port = port.host_port, "SCTP host ports are not supported");
            return None;
        }
    };
    let host_ip = match port.host_ip {
        None => None,
        Some(IpAddr::V4(address)) => Some(address).filter(|address| !address.is_unspecified()),
        Some(IpAddr::V6(address)) => {
            tracing::warn!(port = port.host_port, %address, "a host port of IPv6 is not opened");
            return None;
        }
    };
    Some(worker_network::PortMapping {
        protocol,
        host_ip,
        host_port: port.host_port,
        container_port: port.container_port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_port_on_all_addresses_names_none() {
        let port = PortMapping {
            protocol: worker_runtime::Protocol::Udp,
            container_port: 53,
            host_port: 5353,
            host_ip: Some(IpAddr::from([0, 0, 0, 0])),
        };
        let translated = host_port(&port).unwrap();
        assert_eq!((translated.host_ip, translated.protocol), (None, worker_network::Protocol::Udp));
    }

    #[test]
    fn a_host_port_on_one_address_of_ipv6_is_not_opened_on_all_of_ipv4() {
        let port = PortMapping {
            protocol: worker_runtime::Protocol::Tcp,
            container_port: 80,
            host_port: 8080,
            host_ip: Some(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])),
        };
        assert_eq!(host_port(&port), None);
    }
}
