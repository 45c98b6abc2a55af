//! The veth pair of one pod. The host's end `epodXXXXXXXX` has a /32 route to the pod; the pod's end
//! `eth0` has a default route through a link-local gateway with a permanent neighbour entry. There is no
//! ARP, no learning and no bridge: every packet passes the host's routing and nftables hooks, also
//! between two pods of a node.

use std::{fs::File, net::Ipv4Addr, os::fd::AsRawFd, path::Path};

use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute},
};

use super::{Error, PodParameters, VETH_PREFIX};
use crate::{
    config::net,
    netlink::{self, Mac, Netlink, NextHop, Route},
    sysctl,
};

/// Gateway address in every pod; it exists only in the pods' neighbour tables.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Hardware address of the host's end of every veth pair.
const HOST_MAC: Mac = [0xee, 0xee, 0xee, 0xee, 0xee, 0xee];

/// Returns the name of the host's end for the pod at `address`.
pub(super) fn veth_name(address: Ipv4Addr) -> String {
    format!("{VETH_PREFIX}{:08x}", u32::from(address))
}

fn pod_mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// Connects the namespace at `netns` with `address`. First removes an interface of the same name that an
/// interrupted attempt or a leaked pod left.
pub(super) async fn connect(
    parameters: &PodParameters,
    address: Ipv4Addr,
    netns: &Path,
    interface: &str,
) -> Result<(), Error> {
    let host = Netlink::open()?;
    let name = veth_name(address);
    if host.link_index(&name).await?.is_some() {
        if is_connected(netns, interface, address).await? {
            return finish_host(&host, parameters, address, &name).await;
        }
        host.delete_link(&name).await?;
    }
    let namespace = File::open(netns).map_err(|source| {
        Error::Netlink(netlink::Error::Io { what: format!("open namespace {}", netns.display()), source })
    })?;
    let peer = LinkUnspec::new_with_name(interface)
        .mtu(parameters.mtu)
        .address(pod_mac(address).to_vec())
        .append_extra_attribute(LinkAttribute::NetNsFd(namespace.as_raw_fd()))
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(name.clone())
        .mtu(parameters.mtu)
        .address(HOST_MAC.to_vec())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    host.add_link(pair, &format!("the veth pair {name}")).await?;
    let interface = interface.to_string();
    netlink::in_namespace(netns, move || async move { finish_pod(&interface, address).await }).await?;
    finish_host(&host, parameters, address, &name).await
}

async fn is_connected(netns: &Path, interface: &str, address: Ipv4Addr) -> Result<bool, Error> {
    let interface = interface.to_string();
    let check = move || async move {
        let pod = Netlink::open()?;
        let Some(index) = pod.link_index(&interface).await? else { return Ok(false) };
        let addressed = pod.addresses(index).await?.iter().any(|(held, _)| *held == address);
        let routed = pod.own_routes().await?.iter().any(|route| route.hop == NextHop::Via(GATEWAY, index));
        Ok(addressed && routed)
    };
    Ok(netlink::in_namespace(netns, check).await?)
}

async fn finish_pod(interface: &str, address: Ipv4Addr) -> Result<(), netlink::Error> {
    let pod = Netlink::open()?;
    if let Some(lo) = pod.link_index("lo").await? {
        pod.set_up(lo, None).await?;
    }
    let Some(index) = pod.link_index(interface).await? else {
        return Err(netlink::Error::Io {
            what: format!("find {interface} in the pod"),
            source: std::io::ErrorKind::NotFound.into(),
        });
    };
    pod.ensure_address(index, address, false).await?;
    pod.set_up(index, None).await?;
    pod.ensure_neighbour(index, GATEWAY, HOST_MAC).await?;
    let default = net(Ipv4Addr::UNSPECIFIED, 0);
    pod.replace_route(&Route { destination: default, hop: NextHop::Via(GATEWAY, index), source: None }).await
}

async fn finish_host(
    host: &Netlink,
    parameters: &PodParameters,
    address: Ipv4Addr,
    name: &str,
) -> Result<(), Error> {
    let Some(index) = host.link_index(name).await? else {
        return Err(Error::Netlink(netlink::Error::Io {
            what: format!("find {name}"),
            source: std::io::ErrorKind::NotFound.into(),
        }));
    };
    // Strict reverse path check: packets from the pod without the pod's address as their source are dropped.
    sysctl::set(&format!("net/ipv4/conf/{name}/rp_filter"), "1")?;
    sysctl::set(&format!("net/ipv4/conf/{name}/forwarding"), "1")?;
    host.set_up(index, None).await?;
    host.ensure_neighbour(index, address, pod_mac(address)).await?;
    let source = Some(parameters.gateway);
    host.replace_route(&Route { destination: net(address, 32), hop: NextHop::Device(index), source }).await?;
    Ok(())
}

/// Makes the host accept a pod's answers to its own 127.0.0.1 traffic to host ports, whose
/// source address is rewritten.
pub(super) fn accept_loopback(address: Ipv4Addr) -> Result<(), Error> {
    Ok(sysctl::set(&format!("net/ipv4/conf/{}/route_localnet", veth_name(address)), "1")?)
}

/// Deletes the veth pair; the kernel removes its route and neighbour entry too.
pub(super) async fn disconnect(address: Ipv4Addr) -> Result<(), Error> {
    Netlink::open()?.delete_link(&veth_name(address)).await?;
    Ok(())
}
