//! Configuration of a node's network: what `worker/node` and `master/node` fill in and hand to
//! `Network::start`, and what `cleanup` needs to take everything away again.

use std::{net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Everything a node must be told about its network. `NetworkConfig::new` gives the defaults of DESIGN.md.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Name of this node's Node object (for a master without pods: any name that is no Node's).
    pub node_name: String,
    /// Address by which other hosts reach this one; source of the overlay's outer packets.
    pub node_ip: Ipv4Addr,
    /// Whether pods run here: a worker. A master takes part in the overlay and the service proxy only.
    pub pods: bool,
    /// Range of all pod addresses; each node's podCIDR lies in it.
    pub cluster_cidr: Ipv4Net,
    /// Range of all ClusterIPs.
    pub service_cidr: Ipv4Net,
    /// Directory for address reservations and the last known podCIDR.
    pub state_dir: PathBuf,
    /// The VXLAN device.
    pub overlay: OverlayConfig,
    /// Shortest time between two writes of the service proxy, in milliseconds; bursts in between are one write.
    pub proxy_min_interval_ms: u64,
    /// The DNS server of this node; `None` runs none.
    pub dns: Option<DnsConfig>,
    /// Port on the node's overlay address where the balancer in front of the masters serves pods.
    pub api_port: u16,
    /// Port on loopback where the balancer serves the agent, which no host port may take over; `None`
    /// where no agent runs.
    pub agent_api_port: Option<u16>,
}

/// The VXLAN device; all nodes of a cluster must agree on `vni` and `port`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayConfig {
    /// Interface name, at most 15 bytes.
    pub device: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// MTU of pods; `None` takes the underlay's minus 50 (the VXLAN headers over IPv4).
    pub mtu: Option<u32>,
}

/// The cluster DNS server, run by every node on the same address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// The cluster DNS address, inside the service range; bound to `lo` of each node.
    pub address: Ipv4Addr,
    /// Port, UDP and TCP.
    pub port: u16,
    /// The cluster's domain without dots at its ends.
    pub domain: String,
    /// File whose `nameserver` lines are asked for names outside the cluster's domain.
    pub resolv_conf: PathBuf,
}

impl NetworkConfig {
    /// A worker's network with the default ranges, ports and names.
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

    /// The same for a master that runs no pods: overlay and service proxy, no addresses to give out.
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

/// A network from parts that are known to be right.
pub(crate) fn net(address: Ipv4Addr, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(address, prefix)
}
