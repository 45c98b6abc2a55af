//! Attaches pods to the node's network: a veth pair routed to the pod's /32, without a bridge
//! (`ops/docs/decisions/pod-network.md` says why). Called by the embedded runtime through
//! `worker/node`, and by `cni`; hands nftables scripts to `rules`.

mod attach;
mod rules;

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use crate::{
    cluster_state::Protocol,
    ipam::{self, Ipam, Reservation},
    netlink, nft, sysctl,
};

pub(crate) use rules::TABLE;

/// Prefix of the name of a pod's veth on the host; the pod's address in hexadecimal follows.
pub(crate) const VETH_PREFIX: &str = "epod";

/// Why attaching or detaching a pod failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node has no podCIDR yet.
    #[error("the pod network is not ready: the node has no podCIDR yet")]
    NotReady,
    /// Reserving or releasing an address failed.
    #[error(transparent)]
    Ipam(#[from] ipam::Error),
    /// A request about interfaces or routes failed.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// Changing host ports or masquerading failed.
    #[error(transparent)]
    Nft(#[from] nft::Error),
    /// Changing a kernel setting failed.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    /// The file with the network's parameters could not be read or written.
    #[error("{path}: {source}")]
    State {
        /// Path of the file.
        path: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
}

/// A port on the host that is forwarded to a port of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Protocol.
    #[serde(deserialize_with = "any_case")]
    pub protocol: Protocol,
    /// Host address that is forwarded; `None` for all.
    #[serde(default, rename = "hostIP", deserialize_with = "perhaps_empty")]
    pub host_ip: Option<Ipv4Addr>,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
}

/// Parameters of the node for attaching pods; kept on disk, so that they survive an API outage and are
/// available to `ephor cni`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodParameters {
    /// The node's podCIDR, its part of the cluster's pod addresses.
    pub pod_cidr: Ipv4Net,
    /// Range of all pod addresses of the cluster.
    pub cluster_cidr: Ipv4Net,
    /// The node's own address in the pod network: the first of its podCIDR.
    pub gateway: Ipv4Addr,
    /// MTU of the pods' interfaces.
    pub mtu: u32,
    /// Name of the overlay's device.
    pub overlay_device: String,
    /// Addresses of this host that host ports must not capture: those of cluster DNS.
    #[serde(default)]
    pub protected_addresses: BTreeSet<Ipv4Addr>,
    /// TCP ports on the host's loopback that host ports must not capture: the agent's
    /// connection to the masters.
    #[serde(default)]
    pub protected_loopback_ports: BTreeSet<u16>,
}

/// The node's pod network: attaches and detaches pods. Cheap to share.
#[derive(Debug)]
pub struct PodNetwork {
    ipam: Ipam,
    file: PathBuf,
    parameters: watch::Sender<Option<Arc<PodParameters>>>,
    // Serializes changes, so that attach and detach of one sandbox do not overlap.
    work: Mutex<()>,
}

impl PodNetwork {
    /// Opens the state under `state_dir` and loads the parameters of an earlier run.
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        let ipam = Ipam::open(state_dir.join("addresses"))?;
        let file = state_dir.join("pod-network.json");
        let known = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).ok().map(Arc::new),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(Error::State { path: file, source }),
        };
        Ok(Self { ipam, file, parameters: watch::Sender::new(known), work: Mutex::new(()) })
    }

    /// Returns the current parameters, `None` until the node has a podCIDR. Used for the node's Ready
    /// condition.
    pub fn ready(&self) -> watch::Receiver<Option<Arc<PodParameters>>> {
        self.parameters.subscribe()
    }

    /// Sets new parameters and writes the node-wide rules: masquerading, and the host ports of existing pods.
    pub async fn configure(&self, parameters: PodParameters) -> Result<(), Error> {
        let _work = self.work.lock().await;
        sysctl::set("net/ipv4/ip_forward", "1")?;
        nft::apply(&rules::table(&parameters, &self.ipam.list()?)).await?;
        let bytes = serde_json::to_vec(&parameters).map_err(|error| self.state(error.into()))?;
        let new = self.file.with_extension("new");
        fs::write(&new, bytes)
            .and_then(|()| fs::rename(&new, &self.file))
            .map_err(|source| self.state(source))?;
        self.parameters.send_if_modified(|now| {
            let changed = now.as_deref() != Some(&parameters);
            if changed {
                *now = Some(Arc::new(parameters));
            }
            changed
        });
        Ok(())
    }

    /// Reserves an address for the sandbox and creates the interface `eth0` in the network
    /// namespace at `netns`. Attaching again gives the same address. After a failure the address
    /// stays reserved until `detach`.
    pub async fn attach(
        &self,
        sandbox: &str,
        netns: &Path,
        ports: &[PortMapping],
    ) -> Result<Vec<IpAddr>, Error> {
        self.attach_as(sandbox, netns, "eth0", ports).await.map(|address| vec![IpAddr::V4(address)])
    }

    /// Attaches like [`PodNetwork::attach`], with the given interface name.
    pub async fn attach_as(
        &self,
        sandbox: &str,
        netns: &Path,
        interface: &str,
        ports: &[PortMapping],
    ) -> Result<Ipv4Addr, Error> {
        let parameters = self.parameters.borrow().clone().ok_or(Error::NotReady)?;
        let _work = self.work.lock().await;
        let ports: Vec<_> = ports.iter().filter(|port| port.host_port != 0).cloned().collect();
        let reservation = Reservation { sandbox: sandbox.into(), ports };
        let address = self.ipam.reserve(parameters.pod_cidr, &reservation)?;
        attach::connect(&parameters, address, netns, interface).await?;
        if !reservation.ports.is_empty() {
            attach::accept_loopback(address)?;
            nft::apply(&rules::add_ports(address, &reservation.ports)).await?;
        }
        Ok(address)
    }

    /// Detaches the sandbox from the network and frees its address. Succeeds if the sandbox was never
    /// attached or its namespace is gone.
    pub async fn detach(&self, sandbox: &str) -> Result<(), Error> {
        let _work = self.work.lock().await;
        let held: Vec<_> =
            self.ipam.list()?.into_iter().filter(|(_, held)| held.sandbox == sandbox).collect();
        self.disconnect(&held).await?;
        self.ipam.release(sandbox)?;
        Ok(())
    }

    /// Detaches every sandbox that is not in `live`; returns how many were detached.
    pub async fn collect_garbage(&self, live: &BTreeSet<String>) -> Result<usize, Error> {
        let _work = self.work.lock().await;
        let leaked: Vec<_> =
            self.ipam.list()?.into_iter().filter(|(_, held)| !live.contains(&held.sandbox)).collect();
        self.disconnect(&leaked).await?;
        self.ipam.retain(live)?;
        Ok(leaked.len())
    }

    /// Returns the address of a sandbox; `None` if it has none.
    pub fn address_of(&self, sandbox: &str) -> Result<Option<Ipv4Addr>, Error> {
        Ok(self.ipam.list()?.into_iter().find(|(_, held)| held.sandbox == sandbox).map(|(ip, _)| ip))
    }

    async fn disconnect(&self, held: &[(Ipv4Addr, Reservation)]) -> Result<(), Error> {
        for (address, reservation) in held {
            attach::disconnect(*address).await?;
            if !reservation.ports.is_empty() {
                rules::remove_ports(*address, &reservation.ports).await?;
            }
        }
        Ok(())
    }

    fn state(&self, source: io::Error) -> Error {
        Error::State { path: self.file.clone(), source }
    }
}

/// Writes the node-wide rules of a host without pods, a master: its own traffic to and from the overlay is
/// masqueraded like that of pods.
pub(crate) async fn configure_host(parameters: &PodParameters) -> Result<(), Error> {
    Ok(nft::apply(&rules::table(parameters, &[])).await?)
}

/// Returns whether an interface is the host's end of a pod's veth pair.
pub(crate) fn is_pod_interface(name: &str) -> bool {
    let rest = name.strip_prefix(VETH_PREFIX);
    rest.is_some_and(|rest| rest.len() == 8 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Reads a protocol in lower case (CNI) or upper case (API).
fn any_case<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Protocol, D::Error> {
    let name = String::deserialize(deserializer)?.to_ascii_uppercase();
    Protocol::parse(Some(&name))
        .ok_or_else(|| serde::de::Error::custom(format!("protocol {name} is not supported for host ports")))
}

/// Reads a host address; container runtimes write "no address" as an empty text.
fn perhaps_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Ipv4Addr>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("") => Ok(None),
        Some(ip) => ip.parse().map(Some).map_err(serde::de::Error::custom),
    }
}
