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
    ipam::{self, Ipam, Reservation},
    netlink, nft,
    state::Protocol,
    sysctl,
};

pub(crate) use rules::TABLE;

/// Prefix of the host's end of a pod's veth; the pod's address in hexadecimal follows.
pub(crate) const VETH_PREFIX: &str = "epod";

/// Attaching or detaching failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node has no podCIDR yet.
    #[error("the pod network is not ready: the node has no podCIDR yet")]
    NotReady,
    /// Addresses.
    #[error(transparent)]
    Ipam(#[from] ipam::Error),
    /// Interfaces and routes.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// Host ports and masquerading.
    #[error(transparent)]
    Nft(#[from] nft::Error),
    /// Kernel settings.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    /// The file with the network's parameters.
    #[error("{path}: {source}")]
    State {
        /// The file.
        path: PathBuf,
        /// Why it could not be read or written.
        source: io::Error,
    },
}

/// A port of the host that leads to a port of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Protocol.
    #[serde(deserialize_with = "any_case")]
    pub protocol: Protocol,
    /// Host address, `None` for all.
    #[serde(default, rename = "hostIP", deserialize_with = "perhaps_empty")]
    pub host_ip: Option<Ipv4Addr>,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
}

/// What attaching needs to know of the node; kept on disk, so that it survives an API outage and is
/// known to `ephor cni`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodParameters {
    /// The node's share of the cluster's pod addresses.
    pub pod_cidr: Ipv4Net,
    /// All pod addresses of the cluster.
    pub cluster_cidr: Ipv4Net,
    /// The node's own address in the pod network: the first of its podCIDR.
    pub gateway: Ipv4Addr,
    /// MTU of pods.
    pub mtu: u32,
    /// The overlay's device.
    pub overlay_device: String,
    /// Addresses of this host that no host port may take over: where cluster DNS answers.
    #[serde(default)]
    pub protected_addresses: BTreeSet<Ipv4Addr>,
    /// TCP ports on the host's loopback that no host port may take over: the agent's way to the masters.
    #[serde(default)]
    pub protected_loopback_ports: BTreeSet<u16>,
}

/// The pods' side of a node's network. Cheap to share.
#[derive(Debug)]
pub struct PodNetwork {
    ipam: Ipam,
    file: PathBuf,
    parameters: watch::Sender<Option<Arc<PodParameters>>>,
    // nft and the kernel serialize anyway; this keeps attach and detach of one sandbox apart.
    work: Mutex<()>,
}

impl PodNetwork {
    /// Opens the state under `state_dir`; takes up the parameters of an earlier run.
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

    /// The current parameters; `None` until the node has a podCIDR. For the node's Ready condition.
    pub fn ready(&self) -> watch::Receiver<Option<Arc<PodParameters>>> {
        self.parameters.subscribe()
    }

    /// Takes new parameters and writes the node-wide rules: masquerading, host ports of live pods.
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

    /// Gives the sandbox an address and connects the network namespace at `netns` as `eth0`. Attaching
    /// again gives the same address. What was made before a failure stays reserved until `detach`.
    pub async fn attach(
        &self,
        sandbox: &str,
        netns: &Path,
        ports: &[PortMapping],
    ) -> Result<Vec<IpAddr>, Error> {
        self.attach_as(sandbox, netns, "eth0", ports).await.map(|address| vec![IpAddr::V4(address)])
    }

    /// [`PodNetwork::attach`] with an interface name of the caller's.
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

    /// Takes the sandbox off the network and frees its address; fine if it never was on it. The
    /// namespace may be gone already.
    pub async fn detach(&self, sandbox: &str) -> Result<(), Error> {
        let _work = self.work.lock().await;
        let held: Vec<_> =
            self.ipam.list()?.into_iter().filter(|(_, held)| held.sandbox == sandbox).collect();
        self.disconnect(&held).await?;
        self.ipam.release(sandbox)?;
        Ok(())
    }

    /// Detaches every sandbox that is not in `live`; returns how many there were.
    pub async fn collect_garbage(&self, live: &BTreeSet<String>) -> Result<usize, Error> {
        let _work = self.work.lock().await;
        let leaked: Vec<_> =
            self.ipam.list()?.into_iter().filter(|(_, held)| !live.contains(&held.sandbox)).collect();
        self.disconnect(&leaked).await?;
        self.ipam.retain(live)?;
        Ok(leaked.len())
    }

    /// The address of a sandbox, if it has one.
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

/// Writes the node-wide rules of a host without pods: a master, whose own traffic into the overlay and
/// out of it is masqueraded like that of pods.
pub(crate) async fn configure_host(parameters: &PodParameters) -> Result<(), Error> {
    Ok(nft::apply(&rules::table(parameters, &[])).await?)
}

/// Whether an interface is the host's end of a pod's veth pair.
pub(crate) fn is_pod_interface(name: &str) -> bool {
    let rest = name.strip_prefix(VETH_PREFIX);
    rest.is_some_and(|rest| rest.len() == 8 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// CNI spells protocols in lower case, the API in upper case.
fn any_case<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Protocol, D::Error> {
    let name = String::deserialize(deserializer)?.to_ascii_uppercase();
    Protocol::parse(Some(&name))
        .ok_or_else(|| serde::de::Error::custom(format!("protocol {name} is not supported for host ports")))
}

/// Container runtimes pass an empty host address for none.
fn perhaps_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Ipv4Addr>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("") => Ok(None),
        Some(ip) => ip.parse().map(Some).map_err(serde::de::Error::custom),
    }
}
