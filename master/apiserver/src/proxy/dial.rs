//! Connections from the API server: TLS with a client certificate to nodes, plain TCP or TLS to pods.

use std::net::SocketAddr;
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
const DEFAULT_NODE_PORT: i64 = 10250;

/// Any byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// Dials nodes.
pub struct NodeDialer(RwLock<NodeClient>);

/// A node's HTTPS server.
#[derive(Clone, Debug)]
pub struct NodeAddress {
    /// The node.
    pub node: String,
    /// Where it listens.
    pub address: SocketAddr,
}

impl NodeDialer {
    /// A dialer that shows the client's certificate.
    pub fn new(client: NodeClient) -> Self {
        Self(RwLock::new(client))
    }

    /// Shows another certificate from now on.
    pub fn replace(&self, client: NodeClient) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = client;
    }

    /// Connects to a node.
    ///
    /// # Errors
    ///
    /// What went wrong, with the address.
    pub async fn dial(&self, to: &NodeAddress) -> Result<Box<dyn Stream>, String> {
        let text = |error: &dyn std::fmt::Display| format!("dial tcp {}: {error}", to.address);
        let client = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let config = client.config(&to.node).map_err(|e| text(&e))?;
        let connected = tokio::time::timeout(DIAL_TIMEOUT, async {
            let stream = TcpStream::connect(to.address).await?;
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

/// Connects to a pod.
///
/// # Errors
///
/// What went wrong, with the address.
pub async fn dial_pod(address: SocketAddr) -> Result<Box<dyn Stream>, String> {
    match tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) => Err(format!("dial tcp {address}: connect: {error}")),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

/// Where a node's HTTPS server is, from the Node's status: InternalIP before other addresses, and the kubelet
/// endpoint's port.
///
/// # Errors
///
/// 404 for no such node, 500 where it has no address.
pub fn node_address(registry: &Registry, node: &str, port: Option<u16>) -> Result<NodeAddress, Status> {
    let object = registry.peek("", "nodes", "", node).ok_or_else(|| Status::not_found("", "nodes", node))?;
    let addresses =
        object.pointer("/status/addresses").and_then(Value::as_array).cloned().unwrap_or_default();
    let of_kind = |kind: &str| {
        addresses
            .iter()
            .filter(|a| a.get("type").and_then(Value::as_str) == Some(kind))
            .filter_map(|a| a.get("address").and_then(Value::as_str)?.parse::<std::net::IpAddr>().ok())
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
    let declared = object.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_i64);
    let declared = declared.filter(|p| *p > 0).unwrap_or(DEFAULT_NODE_PORT);
    let port = port.or_else(|| u16::try_from(declared).ok()).unwrap_or(10250);
    Ok(NodeAddress { node: node.to_owned(), address: SocketAddr::new(ip, port) })
}
