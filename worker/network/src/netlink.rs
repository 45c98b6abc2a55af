//! The route-netlink requests of the pod network and the overlay, made through `rtnetlink`, and a way to run
//! code in another network namespace. Every request acts in the namespace of the thread that opened the
//! [`Netlink`]. Called by `pod`, `overlay` and `dns::server`.

use std::{fs::File, future::Future, io, net::Ipv4Addr, path::Path};

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, setns};
use rtnetlink::{
    Handle, IpVersion, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage, AddressScope},
        link::LinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
};

/// Protocol number that marks the routes made by Ephor (`proto 142` in `ip route`).
const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(142);

/// Hardware (MAC) address.
pub type Mac = [u8; 6];

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be opened, or a namespace could not be entered.
    #[error("{what}: {source}")]
    Io {
        /// The operation that failed.
        what: String,
        /// The underlying error.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("{what}: {source}")]
    Request {
        /// The operation that was requested.
        what: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// The thread working in another namespace ended without a result.
    #[error("the thread in the other namespace panicked")]
    Thread,
}

impl Error {
    fn errno(&self) -> i32 {
        match self {
            Self::Request { source: rtnetlink::Error::NetlinkError(message), .. } => message.raw_code().abs(),
            _ => 0,
        }
    }

    /// Returns whether the kernel answered that the object does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self.errno(), libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL)
    }

    /// Returns whether the kernel answered that the object exists already.
    pub fn is_present(&self) -> bool {
        self.errno() == libc::EEXIST
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    let what = what.into();
    move |source| Error::Request { what, source }
}

/// A route in the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination.
    pub destination: Ipv4Net,
    /// Next hop of the packets.
    pub hop: NextHop,
    /// Source address for locally generated packets; `None` lets the kernel choose.
    pub source: Option<Ipv4Addr>,
}

/// Next hop of a [`Route`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NextHop {
    /// Destination hosts are neighbours on the device with this index.
    Device(u32),
    /// Gateway address and device index; the gateway counts as a neighbour on the device
    /// even without a route to it.
    Via(Ipv4Addr, u32),
    /// Packets are answered with ICMP host unreachable.
    Unreachable,
}

/// Netlink connection to the kernel in one network namespace.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens a connection in the current thread's namespace; must be called inside a tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| Error::Io { what: "open a netlink socket".into(), source })?;
        // The connection's task ends once the last handle is dropped.
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Returns the interface `name`; `None` if it does not exist.
    pub async fn link(&self, name: &str) -> Result<Option<LinkMessage>, Error> {
        let found = self.handle.link().get().match_name(name.to_string()).execute().try_next().await;
        match found.map_err(failed(format!("look up interface {name}"))) {
            Ok(link) => Ok(link),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns all interfaces.
    pub async fn links(&self) -> Result<Vec<LinkMessage>, Error> {
        self.handle.link().get().execute().try_collect().await.map_err(failed("list interfaces"))
    }

    /// Returns the index of the interface `name`; `None` if it does not exist.
    pub async fn link_index(&self, name: &str) -> Result<Option<u32>, Error> {
        Ok(self.link(name).await?.map(|link| link.header.index))
    }

    /// Creates an interface; `what` describes the request in an error.
    pub async fn add_link(&self, message: LinkMessage, what: &str) -> Result<(), Error> {
        self.handle.link().add(message).execute().await.map_err(failed(format!("create {what}")))
    }

    /// Deletes an interface; returns whether it existed.
    pub async fn delete_link(&self, name: &str) -> Result<bool, Error> {
        let Some(index) = self.link_index(name).await? else { return Ok(false) };
        match self.handle.link().del(index).execute().await.map_err(failed(format!("delete {name}"))) {
            Ok(()) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Brings an interface up and, if `mtu` is given, sets its MTU.
    pub async fn set_up(&self, index: u32, mtu: Option<u32>) -> Result<(), Error> {
        let mut message = LinkUnspec::new_with_index(index).up();
        if let Some(mtu) = mtu {
            message = message.mtu(mtu);
        }
        let change = self.handle.link().change(message.build());
        let flags = rtnetlink::packet_core::NLM_F_REQUEST | rtnetlink::packet_core::NLM_F_ACK;
        change.set_flags(flags).execute().await.map_err(failed(format!("bring up interface {index}")))
    }

    /// Ensures that the interface has this address as a /32, with host scope if `host_scope`.
    pub async fn ensure_address(&self, index: u32, address: Ipv4Addr, host_scope: bool) -> Result<(), Error> {
        let mut request = self.handle.address().add(index, address.into(), 32);
        if host_scope {
            request.message_mut().header.scope = AddressScope::Host;
        }
        match request.execute().await.map_err(failed(format!("add address {address}"))) {
            Err(error) if !error.is_present() => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns the IPv4 addresses of an interface.
    pub async fn addresses(&self, index: u32) -> Result<Vec<(Ipv4Addr, AddressMessage)>, Error> {
        let all: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .map_err(failed("list addresses"))?;
        let of_link = all.into_iter().filter(|message| message.header.index == index);
        let addressed = of_link.filter_map(|message| {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(std::net::IpAddr::V4(address)) => Some(*address),
                _ => None,
            })?;
            Some((address, message))
        });
        Ok(addressed.collect())
    }

    /// Returns the index of the interface that has this address; `None` if none has it.
    pub async fn link_with_address(&self, wanted: Ipv4Addr) -> Result<Option<u32>, Error> {
        let all: Vec<AddressMessage> =
            self.handle.address().get().execute().try_collect().await.map_err(failed("list addresses"))?;
        let has = |message: &&AddressMessage| {
            message.attributes.contains(&AddressAttribute::Local(std::net::IpAddr::V4(wanted)))
        };
        Ok(all.iter().find(has).map(|message| message.header.index))
    }

    /// Removes an address found by [`Netlink::addresses`].
    pub async fn delete_address(&self, message: AddressMessage) -> Result<(), Error> {
        ignore_absent(self.handle.address().del(message).execute().await.map_err(failed("delete address")))
    }

    /// Adds a route, or replaces the route to the same destination.
    pub async fn replace_route(&self, route: &Route) -> Result<(), Error> {
        let what = format!("add route to {}", route.destination);
        self.handle.route().add(message_of(route)).replace().execute().await.map_err(failed(what))
    }

    /// Removes a route; succeeds if it does not exist.
    pub async fn delete_route(&self, route: &Route) -> Result<(), Error> {
        let what = format!("delete route to {}", route.destination);
        ignore_absent(self.handle.route().del(message_of(route)).execute().await.map_err(failed(what)))
    }

    /// Returns the routes that Ephor made.
    pub async fn own_routes(&self) -> Result<Vec<Route>, Error> {
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let all: Vec<RouteMessage> =
            self.handle.route().get(filter).execute().try_collect().await.map_err(failed("list routes"))?;
        Ok(all.iter().filter_map(route_of).collect())
    }

    /// Ensures a permanent neighbour entry that maps `address` on the device to `mac`.
    pub async fn ensure_neighbour(&self, index: u32, address: Ipv4Addr, mac: Mac) -> Result<(), Error> {
        let request = self.handle.neighbours().add(index, address.into()).link_layer_address(&mac).replace();
        request.execute().await.map_err(failed(format!("add neighbour {address}")))
    }

    /// Ensures that a VXLAN device sends frames for `mac` to the host `remote`.
    pub async fn ensure_forwarding(&self, index: u32, mac: Mac, remote: Ipv4Addr) -> Result<(), Error> {
        let request = self
            .handle
            .neighbours()
            .add_bridge(index, &mac)
            .destination(remote.into())
            .flags(NeighbourFlags::Own)
            .replace();
        request.execute().await.map_err(failed(format!("add forwarding entry for {remote}")))
    }

    /// Returns the neighbour entries of a device: address and hardware address.
    pub async fn neighbours(&self, index: u32) -> Result<Vec<(Ipv4Addr, Mac, NeighbourMessage)>, Error> {
        let all: Vec<NeighbourMessage> = self
            .handle
            .neighbours()
            .get()
            .set_family(IpVersion::V4)
            .execute()
            .try_collect()
            .await
            .map_err(failed("list neighbours"))?;
        Ok(all.into_iter().filter_map(|message| neighbour_of(index, message)).collect())
    }

    /// Returns the forwarding entries of a VXLAN device: remote host and hardware address.
    pub async fn forwarding(&self, index: u32) -> Result<Vec<(Ipv4Addr, Mac, NeighbourMessage)>, Error> {
        let mut request = self.handle.neighbours().get();
        request.message_mut().header.family = AddressFamily::Bridge;
        let all: Vec<NeighbourMessage> =
            request.execute().try_collect().await.map_err(failed("list forwarding entries"))?;
        Ok(all.into_iter().filter_map(|message| neighbour_of(index, message)).collect())
    }

    /// Removes an entry that [`Netlink::neighbours`] or [`Netlink::forwarding`] returned.
    pub async fn delete_neighbour(&self, message: NeighbourMessage) -> Result<(), Error> {
        ignore_absent(
            self.handle.neighbours().del(message).execute().await.map_err(failed("delete neighbour")),
        )
    }
}

fn ignore_absent(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_absent() => Ok(()),
        other => other,
    }
}

fn neighbour_of(index: u32, message: NeighbourMessage) -> Option<(Ipv4Addr, Mac, NeighbourMessage)> {
    if message.header.ifindex != index {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(inet)) => address = Some(*inet),
            // Forwarding entries are of the bridge family, whose destination the library does not
            // parse as an IPv4 address.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                address = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    Some((address?, mac?, message))
}

fn message_of(route: &Route) -> RouteMessage {
    let builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.destination.network(), route.destination.prefix_len())
        .protocol(ROUTE_PROTOCOL);
    let mut builder = match route.hop {
        NextHop::Device(index) => builder.output_interface(index).scope(RouteScope::Link),
        NextHop::Via(gateway, index) => builder.output_interface(index).gateway(gateway).onlink(),
        NextHop::Unreachable => builder.kind(RouteType::Unreachable),
    };
    if let Some(source) = route.source {
        builder = builder.pref_source(source);
    }
    builder.build()
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    if message.header.protocol != ROUTE_PROTOCOL || message.header.address_family != AddressFamily::Inet {
        return None;
    }
    let (mut destination, mut gateway, mut device, mut source) = (Ipv4Addr::UNSPECIFIED, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
            RouteAttribute::Oif(index) => device = Some(*index),
            _ => {}
        }
    }
    let hop = match (message.header.kind, gateway, device) {
        (RouteType::Unreachable, ..) => NextHop::Unreachable,
        (_, Some(gateway), Some(device)) => NextHop::Via(gateway, device),
        (_, None, Some(device)) => NextHop::Device(device),
        _ => return None,
    };
    let destination = Ipv4Net::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Route { destination, hop, source })
}

/// Runs `work` on its own thread inside the network namespace at `path`, and waits for the result.
pub async fn in_namespace<T, F>(path: &Path, work: impl FnOnce() -> F + Send + 'static) -> Result<T, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>>,
{
    let io = |what: String| move |source: io::Error| Error::Io { what, source };
    let namespace = File::open(path).map_err(io(format!("open namespace {}", path.display())))?;
    let what = format!("enter namespace {}", path.display());
    let (done, result) = tokio::sync::oneshot::channel();
    // The thread is used for this work only and then ends, so it need not return to its former namespace.
    let spawned = std::thread::Builder::new().name("pod-netns".into()).spawn(move || {
        let outcome = setns(&namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::Io { what: what.clone(), source: errno.into() })
            .and_then(|()| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.map_err(|source| Error::Io { what, source })
            })
            .and_then(|runtime| runtime.block_on(async { work().await }));
        // Sending fails only if the caller was cancelled and no longer needs the result.
        let _cancelled = done.send(outcome);
    });
    spawned.map_err(io("start a thread".into()))?;
    result.await.map_err(|_| Error::Thread)?
}
