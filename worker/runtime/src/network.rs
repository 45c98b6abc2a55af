//! The interface to the pod network: `worker/node` implements [`SandboxNetwork`] with `worker/network` (or a
//! CNI plugin); the runtime calls it when it creates and stops a pod's sandbox.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use tokio::process::Command;

/// The pod whose sandbox is attached or detached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// The CRI id of the sandbox; a pod may have several one after the other.
    pub sandbox_id: String,
}

/// The transport protocol of a host port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A `hostPort` of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port in the pod.
    pub container_port: u16,
    /// The port on the node.
    pub host_port: u16,
    /// The node's address that the port is bound to; `None` means all addresses.
    pub host_ip: Option<IpAddr>,
}

/// Why a sandbox could not be attached or detached.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(
    /// Description of the error, for the pod's event.
    pub String,
);

/// Operations of the pod network that the runtime needs.
#[async_trait]
pub trait SandboxNetwork: Send + Sync + 'static {
    /// Sets up interfaces and addresses, loopback included, in the network namespace at `netns`; returns the
    /// pod's addresses, the primary one first.
    async fn attach(
        &self,
        pod: &PodRef,
        netns: &Path,
        ports: &[PortMapping],
    ) -> Result<Vec<IpAddr>, NetworkError>;

    /// Releases what `attach` set up. Must succeed if nothing is left to release, and if `netns` is gone.
    async fn detach(&self, pod: &PodRef, netns: &Path) -> Result<(), NetworkError>;

    /// Releases what `attach` set up for every sandbox whose id is not in `live` (after a crash, or if a
    /// record was lost); returns how many there were.
    async fn retain(&self, live: &BTreeSet<String>) -> Result<usize, NetworkError> {
        let _ = live;
        Ok(0)
    }

    /// Returns whether pods can be attached now, for the CRI condition NetworkReady; the text of an error
    /// becomes the condition's message.
    async fn ready(&self) -> Result<(), NetworkError> {
        Ok(())
    }
}

/// A network with loopback only, for development and tests: pods reach nothing outside, and
/// their address is 127.0.0.1.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostLoopback;

#[async_trait]
impl SandboxNetwork for HostLoopback {
    async fn attach(&self, _: &PodRef, netns: &Path, _: &[PortMapping]) -> Result<Vec<IpAddr>, NetworkError> {
        let argument = format!("--net={}", netns.display());
        let command = Command::new("nsenter").arg(argument).args(["ip", "link", "set", "lo", "up"]).output();
        let output = tokio::time::timeout(Duration::from_secs(10), command)
            .await
            .map_err(|_| NetworkError("setting up loopback timed out".into()))?
            .map_err(|e| NetworkError(format!("run nsenter: {e}")))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(NetworkError(format!("set up loopback: {}", text.trim())));
        }
        Ok(vec![IpAddr::from([127, 0, 0, 1])])
    }

    async fn detach(&self, _: &PodRef, _: &Path) -> Result<(), NetworkError> {
        Ok(())
    }
}
