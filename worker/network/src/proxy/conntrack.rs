//! Ends UDP flows that connection tracking still sends to removed endpoints, or that it recorded before a
//! service had its first endpoint: nftables sees only the first packet of a flow, and a busy UDP flow never
//! ends by itself. Speaks ctnetlink (`nfnetlink_conntrack.h`) directly. Called by `writer`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::Ipv4Addr,
};

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::{EndpointAddress, RoutedPort};
use crate::cluster_state::Protocol;

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const NEW: u16 = SUBSYSTEM;
const DELETE: u16 = SUBSYSTEM | 2;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 0x001;
const ACK: u16 = 0x004;
const DUMP: u16 = 0x300;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;

/// Endpoints to which the flows of each UDP service address and of each UDP node port may go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpRouting {
    addresses: BTreeMap<EndpointAddress, BTreeSet<EndpointAddress>>,
    node_ports: BTreeMap<u16, BTreeSet<EndpointAddress>>,
}

impl UdpRouting {
    /// Extracts the UDP part of all routing.
    pub fn of(routed: &[RoutedPort]) -> Self {
        let mut udp = Self::default();
        for port in routed.iter().filter(|port| port.key.protocol == Protocol::Udp) {
            for ip in port.external_ips.iter().chain([&port.cluster_ip]) {
                udp.addresses.insert(EndpointAddress { ip: *ip, port: port.key.port }, port.cluster.clone());
            }
            if let Some(node_port) = port.node_port {
                udp.node_ports.insert(node_port, port.cluster.clone());
            }
        }
        udp
    }

    /// Returns whether a flow that was sent to `wanted` and is answered by `answers` must be ended.
    fn is_stale(&self, wanted: EndpointAddress, answers: EndpointAddress) -> bool {
        if let Some(endpoints) = self.addresses.get(&wanted) {
            // Without endpoints every flow is stale: the service is refused in any case.
            return !endpoints.contains(&answers);
        }
        let translated = wanted != answers;
        self.node_ports.get(&wanted.port).is_some_and(|ends| translated && !ends.contains(&answers))
    }
}

/// Deletes the stale flows and returns how many there were. Blocks: call it on a blocking thread, in the
/// node's network namespace.
pub fn end_stale_flows(routing: &UdpRouting) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut stale = Vec::new();
    socket.send(&message(GET, REQUEST | DUMP, &[]), 0)?;
    exchange(&socket, |attributes| {
        if let Some(flow) = parse_flow(attributes)
            && routing.is_stale(flow.wanted, flow.answers)
        {
            stale.push(flow.original);
        }
    })?;
    for original in &stale {
        socket.send(&message(DELETE, REQUEST | ACK, original), 0)?;
        match exchange(&socket, |_| {}) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(stale.len())
}

struct Flow {
    wanted: EndpointAddress,
    answers: EndpointAddress,
    /// Attribute that identifies the flow in a delete request, as received and with its padding.
    original: Vec<u8>,
}

fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER + FAMILY_HEADER + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([libc::AF_INET as u8, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// Reads answers until the end of a dump or an acknowledgement; calls `each` with the attributes of each.
fn exchange(socket: &Socket, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while let Some((kind, body, next)) = split_message(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code =
                        body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                NEW => each(body.get(FAMILY_HEADER..).unwrap_or_default()),
                _ => {}
            }
            rest = next;
        }
    }
}

fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// A netlink attribute at the start of a byte slice.
struct Attribute<'a> {
    kind: u16,
    value: &'a [u8],
    /// Header, value and padding of the attribute.
    whole: &'a [u8],
    rest: &'a [u8],
}

fn split_attribute(bytes: &[u8]) -> Option<Attribute<'_>> {
    let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
    let value = bytes.get(4..length)?;
    let (whole, rest) = bytes.split_at(length.next_multiple_of(4).min(bytes.len()));
    Some(Attribute { kind, value, whole, rest })
}

fn attributes(bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let attribute = split_attribute(rest)?;
        rest = attribute.rest;
        Some(attribute)
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<Attribute<'_>> {
    attributes(bytes).find(|attribute| attribute.kind == wanted)
}

fn parse_flow(bytes: &[u8]) -> Option<Flow> {
    let original = attribute(bytes, TUPLE_ORIGINAL)?;
    let (_, wanted) = parse_tuple(original.value)?;
    let (answers, _) = parse_tuple(attribute(bytes, TUPLE_REPLY)?.value)?;
    Some(Flow { wanted, answers, original: original.whole.to_vec() })
}

/// Returns source and destination of a UDP tuple; `None` for other protocols and for IPv6.
fn parse_tuple(tuple: &[u8]) -> Option<(EndpointAddress, EndpointAddress)> {
    let (ip, protocol) = (attribute(tuple, 1)?.value, attribute(tuple, 2)?.value);
    if attribute(protocol, 1)?.value.first().copied().map(i32::from) != Some(libc::IPPROTO_UDP) {
        return None;
    }
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(attribute(ip, kind)?.value).ok()?));
    let port = |kind| Some(u16::from_be_bytes(attribute(protocol, kind)?.value.try_into().ok()?));
    Some((
        EndpointAddress { ip: address(1)?, port: port(2)? },
        EndpointAddress { ip: address(2)?, port: port(3)? },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(last: u8, port: u16) -> EndpointAddress {
        EndpointAddress { ip: Ipv4Addr::new(10, 42, 0, last), port }
    }

    fn routing(endpoints: &[EndpointAddress]) -> UdpRouting {
        let service = EndpointAddress { ip: Ipv4Addr::new(10, 96, 0, 9), port: 53 };
        let endpoints: BTreeSet<_> = endpoints.iter().copied().collect();
        UdpRouting {
            addresses: BTreeMap::from([(service, endpoints.clone())]),
            node_ports: BTreeMap::from([(30053, endpoints)]),
        }
    }

    #[test]
    fn a_flow_is_stale_when_what_answers_it_is_no_endpoint_any_more() {
        let service = EndpointAddress { ip: Ipv4Addr::new(10, 96, 0, 9), port: 53 };
        let routing = routing(&[backend(2, 53)]);
        assert!(!routing.is_stale(service, backend(2, 53)));
        assert!(routing.is_stale(service, backend(3, 53)));
        assert!(routing.is_stale(service, service), "sent before the service had endpoints");
        assert!(routing.is_stale(backend(200, 30053), backend(3, 53)));
        assert!(!routing.is_stale(backend(200, 30053), backend(200, 30053)), "not through the service");
        assert!(!routing.is_stale(backend(200, 99), backend(3, 53)));
    }

    #[test]
    fn torn_messages_are_skipped_without_harm() {
        for length in 0..40 {
            let bytes = vec![9_u8; length];
            split_message(&bytes);
            parse_flow(&bytes);
        }
        assert!(split_message(&message(GET, REQUEST, &[])).is_some());
    }
}
