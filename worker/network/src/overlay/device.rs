//! The VXLAN device in the kernel: creates it, and brings addresses, neighbours, forwarding
//! entries and routes in line with an [`OverlayPlan`] by comparing with the kernel. This also repairs
//! changes made by other programs.

use std::{collections::BTreeSet, net::Ipv4Addr};

use rtnetlink::{
    LinkVxlan,
    packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage},
};

use super::{Error, OverlayPlan, vtep_mac};
use crate::{
    config::OverlayConfig,
    netlink::{Mac, Netlink, NextHop, Route},
    sysctl,
};

/// Number of bytes that VXLAN over IPv4 adds to a packet.
const VXLAN_OVERHEAD: u32 = 50;

/// This host's end of the overlay.
#[derive(Debug)]
pub struct Overlay {
    netlink: Netlink,
    config: OverlayConfig,
    host: Ipv4Addr,
}

impl Overlay {
    /// Opens a connection in the current thread's network namespace; `host` is this host's underlay address.
    pub fn new(config: OverlayConfig, host: Ipv4Addr) -> Result<Self, Error> {
        Ok(Self { netlink: Netlink::open()?, config, host })
    }

    /// Ensures that the device exists as configured and is up; returns its index.
    pub async fn ensure_device(&self, mtu: u32) -> Result<u32, Error> {
        let name = &self.config.device;
        match self.netlink.link(name).await? {
            Some(link) if self.is_ours(&link) => {
                self.netlink.set_up(link.header.index, Some(mtu)).await?;
                return Ok(link.header.index);
            }
            Some(_) => {
                self.netlink.delete_link(name).await?;
            }
            None => {}
        }
        let message = LinkVxlan::new(name, self.config.vni)
            .local(self.host)
            .port(self.config.port)
            .append_info_data(InfoVxlan::Learning(false))
            .address(vtep_mac(self.host).to_vec())
            .mtu(mtu)
            .up()
            .build();
        self.netlink.add_link(message, name).await?;
        // Loose reverse path check: answers may arrive by another route than packets left (for example if the
        // source is the host's own address).
        sysctl::set(&format!("net/ipv4/conf/{name}/rp_filter"), "2")?;
        sysctl::set(&format!("net/ipv4/conf/{name}/forwarding"), "1")?;
        self.netlink.link_index(name).await?.ok_or(Error::NoUnderlay(self.host))
    }

    /// Makes the kernel's entries for this device equal to the plan.
    pub async fn apply(&self, index: u32, plan: &OverlayPlan) -> Result<(), Error> {
        self.apply_addresses(index, plan.address).await?;
        for (host, mac, message) in self.netlink.forwarding(index).await? {
            if mac != [0; 6] && !plan.forwarding.contains(&(host, mac)) {
                self.netlink.delete_neighbour(message).await?;
            }
        }
        for (host, mac) in missing(&plan.forwarding, self.netlink.forwarding(index).await?) {
            self.netlink.ensure_forwarding(index, mac, host).await?;
        }
        for (address, mac) in missing(&plan.neighbours, self.netlink.neighbours(index).await?) {
            self.netlink.ensure_neighbour(index, address, mac).await?;
        }
        self.apply_routes(index, &plan.routes).await?;
        for (address, mac, message) in self.netlink.neighbours(index).await? {
            if !plan.neighbours.contains(&(address, mac)) {
                self.netlink.delete_neighbour(message).await?;
            }
        }
        Ok(())
    }

    async fn apply_addresses(&self, index: u32, wanted: Option<Ipv4Addr>) -> Result<(), Error> {
        for (address, message) in self.netlink.addresses(index).await? {
            if Some(address) != wanted {
                self.netlink.delete_address(message).await?;
            }
        }
        if let Some(address) = wanted {
            self.netlink.ensure_address(index, address, false).await?;
        }
        Ok(())
    }

    async fn apply_routes(&self, index: u32, wanted: &BTreeSet<Route>) -> Result<(), Error> {
        let present = self.netlink.own_routes().await?;
        let destinations: BTreeSet<_> = wanted.iter().map(|route| route.destination).collect();
        let managed = |route: &&Route| match route.hop {
            NextHop::Device(device) | NextHop::Via(_, device) => device == index,
            NextHop::Unreachable => true,
        };
        for route in present.iter().filter(managed) {
            if !destinations.contains(&route.destination) {
                self.netlink.delete_route(route).await?;
            }
        }
        // Routes to endpoints are added first, because the other routes lead through them; the set's
        // order does not guarantee that.
        let direct = |route: &&Route| matches!(route.hop, NextHop::Device(_));
        let (first, then): (Vec<_>, Vec<_>) = wanted.iter().partition(direct);
        for route in first.into_iter().chain(then) {
            if !present.contains(route) {
                self.netlink.replace_route(route).await?;
            }
        }
        Ok(())
    }

    fn is_ours(&self, link: &LinkMessage) -> bool {
        let wanted = vtep_mac(self.host);
        let mac = link.attributes.contains(&LinkAttribute::Address(wanted.to_vec()));
        let infos = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
        let data = infos.into_iter().flatten().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
            _ => None,
        });
        let Some(data) = data else { return false };
        mac && data.contains(&InfoVxlan::Id(self.config.vni))
            && data.contains(&InfoVxlan::Port(self.config.port))
            && data.contains(&InfoVxlan::Local(self.host))
    }
}

fn missing<T>(wanted: &BTreeSet<(Ipv4Addr, Mac)>, present: Vec<(Ipv4Addr, Mac, T)>) -> Vec<(Ipv4Addr, Mac)> {
    let present: BTreeSet<_> = present.into_iter().map(|(address, mac, _)| (address, mac)).collect();
    wanted.difference(&present).copied().collect()
}

/// Returns the MTU for pods: that of the interface with the host's address, less the overlay's overhead.
pub async fn underlay_mtu(host: Ipv4Addr) -> Result<u32, Error> {
    let netlink = Netlink::open()?;
    let index = netlink.link_with_address(host).await?.ok_or(Error::NoUnderlay(host))?;
    let links = netlink.links().await?;
    let mtu = links.iter().find(|link| link.header.index == index).and_then(|link| {
        link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        })
    });
    // Limited, because the loopback interface has 65536, and packets above 65,485 bytes cannot be
    // encapsulated.
    Ok(mtu.unwrap_or(1500).clamp(1280, 65_485) - VXLAN_OVERHEAD)
}
