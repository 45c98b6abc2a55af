//! Configuration of a node's network: filled in by `worker/node` and `master/node` for `Network::start`, and
//! used by `cleanup` to remove the network again.

use std::{net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Configuration of a node's network. `NetworkConfig::new` sets the defaults of DESIGN.md.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Name of this node's Node object (for a master without pods: any name that no Node has).
    pub node_name: String,
    /// Address at which other hosts reach this one; source address of the overlay's outer packets.
    pub node_ip: Ipv4Addr,
    /// Whether pods run on this node (a worker). A master takes part only in the overlay and the service
    /// proxy.
    pub pods: bool,
    /// Range of all pod addresses, which contains each node's podCIDR.
    pub cluster_cidr: Ipv4Net,
    /// Range of all ClusterIPs.
    pub service_cidr: Ipv4Net,
    /// Directory for address reservations and the last known podCIDR.
    pub state_dir: PathBuf,
    /// Settings of the VXLAN device.
    pub overlay: OverlayConfig,
    /// Minimum time between two writes of the service proxy, in milliseconds; changes in
    /// between are written together.
    pub proxy_min_interval_ms: u64,
    /// DNS server of this node; `None` to run none.
    pub dns: Option<DnsConfig>,
    /// Port on the node's overlay address on which the balancer in front of the masters serves pods.
    pub api_port: u16,
    /// Loopback port on which the balancer serves the agent, and which no host port may
    /// capture; `None` if no agent runs.
    pub agent_api_port: Option<u16>,
}

/// Settings of the VXLAN device; `vni` and `port` must be equal on all nodes of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayConfig {
    /// Interface name, at most 15 bytes.
    pub device: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of the encapsulated packets.
    pub port: u16,
    /// MTU of pods; `None` means that of the underlay less 50 bytes (the VXLAN headers over IPv4).
    pub mtu: Option<u32>,
}

/// Settings of the cluster DNS server, which every node runs on the same address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Cluster DNS address, inside the service range; added to `lo` of each node.
    pub address: Ipv4Addr,
    /// UDP and TCP port.
    pub port: u16,
    /// The cluster's domain, without leading or trailing dot.
    pub domain: String,
    /// Path of a file whose `nameserver` lines name the resolvers for names outside the cluster's domain.
    pub resolv_conf: PathBuf,
}

impl NetworkConfig {
    /// Makes the configuration of a worker with the default ranges, ports and names.
    pub fn new(node_name: impl Into<String>, node_ip: Ipv4Addr, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            node_name: node_name.into(),
            node_ip,
            pods: true,
            cluster_cidr: net(Ipv4Addr::new(10, 42, 0, 0), 16),
            service_cidr: net(Ipv4Addr::new(10, 96, 0, 0), 16),
            state_dir: state_dir.into(),
            overlay: OverlayConfig::default(),
            proxy_min_interval_ms: 20,
            dns: Some(DnsConfig::default()),
            api_port: 6443,
            agent_api_port: None,
        }
    }

    /// Changes the configuration to that of a master without pods: overlay and service proxy only.
    pub fn without_pods(mut self) -> Self {
        self.pods = false;
        self
    }
}

impl Default for OverlayConfig {
    fn default() -> Self {
        Self { device: "ephor.vx".into(), vni: 4244, port: 8472, mtu: None }
    }
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::new(10, 96, 0, 10),
            port: 53,
            domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}

/// Makes a network from an address and a prefix length that are known to be valid.
pub(crate) fn net(address: Ipv4Addr, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(address, prefix)
}
