//! The overlay: one VXLAN device between all nodes and masters. `plan` works out what must be in the
//! kernel from Nodes and masters, `device` makes it so. Driven by `network.rs`.

mod device;
mod plan;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

pub use device::{Overlay, underlay_mtu};
pub use plan::{Peer, Plan, peers, plan};

use crate::{
    config::net,
    netlink::{self, Mac},
    sysctl,
};

/// Range of the tunnel endpoints' addresses: the reserved block 240.0.0.0/4, which the kernel routes
/// like any other and no real network uses.
pub const VTEP_RANGE: &str = "240.0.0.0/4";

/// The overlay could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Interfaces, routes, neighbours.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// Kernel settings.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    /// No interface has the node's address.
    #[error("no interface has the node address {0}")]
    NoUnderlay(Ipv4Addr),
}

/// A host's tunnel endpoint address: its own address with the first four bits set. Two hosts clash only
/// if their addresses differ in nothing but those bits; 10/8, 172.16/12 and 192.168/16 never do.
pub fn vtep_address(host: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(host) | 0xf000_0000)
}

/// A host's tunnel endpoint hardware address, made from its address so that nobody must publish it.
pub fn vtep_mac(host: Ipv4Addr) -> Mac {
    let [a, b, c, d] = host.octets();
    [0x02, 0xe9, a, b, c, d]
}

/// The node's own address in the pod network: with pods the first of its podCIDR, else its endpoint's.
pub fn overlay_address(host: Ipv4Addr, pod_cidr: Option<Ipv4Net>) -> Ipv4Addr {
    match pod_cidr {
        Some(cidr) => Ipv4Addr::from(u32::from(cidr.network()) + 1),
        None => vtep_address(host),
    }
}

/// A single address as a network.
pub(crate) fn host(address: Ipv4Addr) -> Ipv4Net {
    net(address, 32)
}
