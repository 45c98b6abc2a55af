//! Connections from the API server: TLS with a client certificate to nodes' HTTPS servers, plain TCP to pods
//! and to other ports of nodes. Addresses come from statuses that nodes write, so allowed destinations are
//! checked here: the API server can reach addresses that a node cannot, and shows a certificate.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use proto_api::status::Status;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::registry::{Registry, metadata};
use crate::tls::NodeClient;

const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_NODE_PORT: u16 = 10250;
/// Kubernetes' error text for an address that a proxy must not reach.
const NOT_ALLOWED: &str = "address not allowed";

/// Any byte stream between the API server and a backend.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// Connects to nodes' HTTPS servers with the API server's client certificate.
pub struct NodeDialer(RwLock<NodeClient>);

/// Address of a node's HTTPS server.
#[derive(Clone, Debug)]
pub struct NodeAddress {
    /// Name of the node.
    pub node: String,
    /// Address the server listens on.
    pub address: SocketAddr,
}

impl NodeDialer {
    /// Creates a dialer that shows the client's certificate.
    pub fn new(client: NodeClient) -> Self {
        Self(RwLock::new(client))
    }

    /// Replaces the client certificate for new connections.
    pub fn replace(&self, client: NodeClient) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = client;
    }

    /// Connects to a node's HTTPS server.
    ///
    /// # Errors
    ///
    /// The reason of the failure, with the address.
    pub async fn dial(&self, registry: &Registry, to: &NodeAddress) -> Result<Box<dyn Stream>, String> {
        let text = |error: &dyn std::fmt::Display| format!("dial tcp {}: {error}", to.address);
        let client = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let config = client.config(&to.node).map_err(|e| text(&e))?;
        let connected = tokio::time::timeout(DIAL_TIMEOUT, async {
            let stream = connect(registry, to.address).await?;
            stream.set_nodelay(true)?;
            TlsConnector::from(config).connect(ServerName::from(to.address.ip()), stream).await
        });
        match connected.await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(text(&error)),
            Err(_) => Err(text(&"i/o timeout")),
        }
    }
}

/// Connects to a pod, or to a port of a node other than its HTTPS server's.
///
/// # Errors
///
/// The reason of the failure, with the address.
pub async fn dial_plain(registry: &Registry, address: SocketAddr) -> Result<Box<dyn Stream>, String> {
    match tokio::time::timeout(DIAL_TIMEOUT, connect(registry, address)).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) => Err(format!("dial tcp {address}: connect: {error}")),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

/// Connects to an address; refuses the ports of masters.
async fn connect(registry: &Registry, address: SocketAddr) -> std::io::Result<TcpStream> {
    let refused = || std::io::Error::new(std::io::ErrorKind::PermissionDenied, NOT_ALLOWED);
    let masters = MasterPorts::of(registry);
    if masters.is_of_masters(address) {
        return Err(refused());
    }
    let stream = TcpStream::connect(address).await?;
    // A connection to this machine has the same IP at both ends; this finds a master on this machine whose
    // listed address is another one.
    let here = stream.local_addr()?.ip().to_canonical() == address.ip().to_canonical();
    if here && masters.ports.contains(&address.port()) { Err(refused()) } else { Ok(stream) }
}

/// Checks that a proxy request may go to an address.
///
/// # Errors
///
/// 400 for loopback, link-local, multicast and unspecified addresses, as in Kubernetes, and for the masters'
/// ports.
pub fn check_proxyable(registry: &Registry, address: SocketAddr) -> Result<(), Status> {
    if is_global_unicast(address.ip()) && !MasterPorts::of(registry).is_of_masters(address) {
        return Ok(());
    }
    Err(Status::bad_request(NOT_ALLOWED))
}

/// Returns the result of Go's `IP.IsGlobalUnicast`.
fn is_global_unicast(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(local || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
}

/// Addresses and ports on which masters listen.
#[derive(Debug, Default)]
struct MasterPorts {
    addresses: BTreeSet<SocketAddr>,
    ports: BTreeSet<u16>,
    /// The address of Service `default/kubernetes`, which forwards to the API servers.
    service: Option<IpAddr>,
}

impl MasterPorts {
    fn of(registry: &Registry) -> Self {
        let members = registry.consensus.members();
        let listed = members.iter().flat_map(|m| [&m.api_address, &m.peer_address]);
        let addresses: BTreeSet<SocketAddr> = listed
            .filter_map(|address| address.parse::<SocketAddr>().ok())
            .map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()))
            .collect();
        let ports = addresses.iter().map(SocketAddr::port).collect();
        Self { addresses, ports, service: registry.settings().service_cidr.hosts().next() }
    }

    fn is_of_masters(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        self.service == Some(ip) || self.addresses.contains(&SocketAddr::new(ip, address.port()))
    }
}

/// Returns the address of a node's HTTPS server, from the Node's status: InternalIP before other addresses,
/// and the port of the kubelet endpoint.
///
/// # Errors
///
/// 404 for no such node, 500 where it has no address.
pub fn node_address(registry: &Registry, node: &str) -> Result<NodeAddress, Status> {
    let object = registry.peek("", "nodes", "", node).ok_or_else(|| Status::not_found("", "nodes", node))?;
    let addresses =
        object.pointer("/status/addresses").and_then(Value::as_array).cloned().unwrap_or_default();
    let of_kind = |kind: &str| {
        addresses
            .iter()
            .filter(|a| a.get("type").and_then(Value::as_str) == Some(kind))
            .filter_map(|a| a.get("address").and_then(Value::as_str)?.parse::<IpAddr>().ok())
            .next()
    };
    let address = of_kind("InternalIP").or_else(|| of_kind("ExternalIP")).or_else(|| of_kind("Hostname"));
    let Some(ip) = address else {
        return Err(Status::internal(format!(
            "no preferred addresses found; known addresses of node {}: {}",
            metadata::text(&object, "name"),
            addresses.len()
        )));
    };
    let declared = object.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
    let port = declared.filter(|p| *p > 0).and_then(|p| u16::try_from(p).ok()).unwrap_or(DEFAULT_NODE_PORT);
    Ok(NodeAddress { node: node.to_owned(), address: SocketAddr::new(ip, port) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_machines_and_pods_are_proxied_to() {
        for allowed in ["10.42.0.7", "192.168.1.1", "8.8.8.8", "fd00::7", "::ffff:10.42.0.7"] {
            assert!(is_global_unicast(allowed.parse().expect("an address")), "{allowed}");
        }
        let refused = [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "::",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
        ];
        for refused in refused {
            assert!(!is_global_unicast(refused.parse().expect("an address")), "{refused}");
        }
    }

    #[test]
    fn ports_of_masters_are_known_by_address_and_by_the_api_service() {
        let masters = MasterPorts {
            addresses: BTreeSet::from(["10.0.0.1:6443".parse().expect("an address")]),
            ports: BTreeSet::from([6443]),
            service: "10.96.0.1".parse().ok(),
        };
        for own in ["10.0.0.1:6443", "[::ffff:10.0.0.1]:6443", "10.96.0.1:443"] {
            assert!(masters.is_of_masters(own.parse().expect("an address")), "{own}");
        }
        for other in ["10.0.0.1:10250", "10.0.0.2:6443"] {
            assert!(!masters.is_of_masters(other.parse().expect("an address")), "{other}");
        }
    }
}
