//! The overlay: a VXLAN device on every node and master. `plan` computes the kernel entries from Nodes and
//! masters, `device` applies them. Driven by `network.rs`.

mod device;
mod plan;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

pub use device::{Overlay, underlay_mtu};
pub use plan::{OverlayPlan, Peer, peers, plan};

use crate::{
    config::net,
    netlink::{self, Mac},
    sysctl,
};

/// Range of the tunnel endpoints' addresses: the reserved block 240.0.0.0/4, which the kernel routes
/// like any other and no real network uses.
pub const VTEP_RANGE: &str = "240.0.0.0/4";

/// Why the overlay could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request about interfaces, routes or neighbours failed.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// Changing a kernel setting failed.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    /// No interface has the node's address.
    #[error("no interface has the node address {0}")]
    NoUnderlay(Ipv4Addr),
}

/// Returns a host's tunnel endpoint address: the host's address with the first four bits set. The
/// endpoints of two hosts clash only if their addresses differ in those bits alone, which those in 10/8,
/// 172.16/12 and 192.168/16 never do.
pub fn vtep_address(host: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(host) | 0xf000_0000)
}

/// Returns the hardware address of a host's tunnel endpoint, derived from the host's address, so that
/// it need not be published.
pub fn vtep_mac(host: Ipv4Addr) -> Mac {
    let [a, b, c, d] = host.octets();
    [0x02, 0xe9, a, b, c, d]
}

/// Returns the node's own address in the pod network: the first of its podCIDR, or its
/// endpoint address if it has none.
pub fn overlay_address(host: Ipv4Addr, pod_cidr: Option<Ipv4Net>) -> Ipv4Addr {
    match pod_cidr {
        Some(cidr) => Ipv4Addr::from(u32::from(cidr.network()) + 1),
        None => vtep_address(host),
    }
}

/// Returns a network that contains a single address.
pub(crate) fn host(address: Ipv4Addr) -> Ipv4Net {
    net(address, 32)
}
