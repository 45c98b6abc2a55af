//! Names, addresses and paths of a cluster of `ephor dev`, computed from its size
//! alone, so that `down` finds everything that `up` may have left,
//! even after a crash.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of the bridge on the host that connects the nodes.
pub const BRIDGE: &str = "ephor-dev";
/// The /24 network of the node addresses; the host has its `.1`.
pub const SUBNET: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 0);
/// Prefix of the names of namespaces, cgroups and interfaces.
pub const PREFIX: &str = "ephor-";
/// Last octet of the first master's address; the other masters follow.
const FIRST_MASTER: u8 = 11;
/// Last octet of the first worker's address.
const FIRST_WORKER: u8 = 101;

/// Role of a node in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs a master: keeps the state.
    Master,
    /// Runs a worker: runs containers.
    Worker,
    /// Stands by for a master that joins later: runs nothing but a chaos agent.
    Spare,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevNode {
    /// `m1`, `m2`, ..., `w1`, `w2`, ...
    pub name: String,
    /// Role of the node.
    pub role: Role,
    /// IPv4 address of the node on the bridge.
    pub address: Ipv4Addr,
}

impl DevNode {
    /// Name of the node's network namespace, as `ip netns` shows it.
    pub fn namespace(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// Name of the host's end of the node's link; at most 15 characters.
    pub fn host_link(&self) -> String {
        format!("ephor-{}", self.name)
    }

    /// Path of the node's cgroup, below the mount of every cgroup controller.
    pub fn cgroup_root(&self) -> String {
        format!("/ephor-dev/{}", self.name)
    }
}

/// Size and location of the cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Layout {
    /// Directory of all the cluster's files.
    pub root: PathBuf,
    /// Number of masters.
    pub masters: u8,
    /// Number of workers.
    pub workers: u8,
    /// Port on the host of the balancer in front of the masters.
    pub api_port: u16,
    /// Whether every node has a chaos agent, and every master a disk that can fail.
    #[serde(default)]
    pub chaos: bool,
    /// Number of spare machines.
    #[serde(default)]
    pub spares: u8,
    /// Lifetime in seconds of the certificates of masters and nodes; `None` for the default.
    #[serde(default)]
    pub certificate_lifetime: Option<u64>,
    /// Longest lifetime in seconds of ServiceAccount tokens; `None` for the API's limit.
    #[serde(default)]
    pub max_token_expiration: Option<u64>,
}

/// A step that is done once for the whole cluster, and never again.
#[derive(Debug, Clone, Copy)]
pub enum Milestone {
    /// The cluster was created on its first master.
    Created,
    /// Every node has joined.
    Complete,
}

/// Maximum number of workers, limited by the address plan.
pub const MAX_WORKERS: u8 = 100;
/// Maximum number of spare machines.
pub const MAX_SPARES: u8 = 4;

impl Layout {
    /// Address of the host on the bridge.
    pub fn host_address() -> Ipv4Addr {
        octet(1)
    }

    /// All nodes: masters, workers, and spare machines, which continue the numbers of the masters.
    pub fn nodes(&self) -> Vec<DevNode> {
        let masters = (0..self.masters).map(|i| DevNode {
            name: format!("m{}", i + 1),
            role: Role::Master,
            address: octet(FIRST_MASTER + i),
        });
        let workers = (0..self.workers).map(|i| DevNode {
            name: format!("w{}", i + 1),
            role: Role::Worker,
            address: octet(FIRST_WORKER + i),
        });
        let spares = (self.masters..self.masters.saturating_add(self.spares)).map(|i| DevNode {
            name: format!("m{}", i + 1),
            role: Role::Spare,
            address: octet(FIRST_MASTER + i),
        });
        masters.chain(workers).chain(spares).collect()
    }

    /// Returns the node of that name; `None` when there is none.
    pub fn node(&self, name: &str) -> Option<DevNode> {
        self.nodes().into_iter().find(|n| n.name == name)
    }

    /// Addresses of the masters' APIs.
    pub fn api_addresses(&self) -> Vec<std::net::SocketAddr> {
        let masters = self.nodes().into_iter().filter(|n| n.role == Role::Master);
        masters.map(|n| (IpAddr::V4(n.address), 6443).into()).collect()
    }

    /// Directory of a node's data.
    pub fn data_dir(&self, node: &DevNode) -> PathBuf {
        self.root.join("nodes").join(&node.name)
    }

    /// Directory of a worker's sockets and other files that do not outlive a boot.
    pub fn run_dir(&self, node: &DevNode) -> PathBuf {
        run_root().join(&node.name)
    }

    /// Path of the socket of a worker's container runtime.
    pub fn cri_socket(&self, node: &DevNode) -> PathBuf {
        self.run_dir(node).join("cri.sock")
    }

    /// Path of the log of a node's process.
    pub fn log_file(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// Directory in which a node's chaos agent keeps its certificate, its journal and the
    /// socket of the node's disk.
    pub fn chaos_dir(&self, node: &DevNode) -> PathBuf {
        self.root.join("chaos").join(&node.name)
    }

    /// Path of the operator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    fn milestone_file(&self, milestone: Milestone) -> PathBuf {
        self.root.join(match milestone {
            Milestone::Created => "created",
            Milestone::Complete => "complete",
        })
    }

    /// Whether this step has been done.
    pub fn has_reached(&self, milestone: Milestone) -> bool {
        self.milestone_file(milestone).exists()
    }

    /// Records that this step has been done.
    pub fn reached(&self, milestone: Milestone) -> anyhow::Result<()> {
        Ok(std::fs::write(self.milestone_file(milestone), "")?)
    }

    /// Reads the layout of the cluster in `root`; `None` when there is no cluster.
    pub fn load(root: &Path) -> anyhow::Result<Option<Self>> {
        match std::fs::read(root.join("layout.json")) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes the layout, before anything else is created.
    pub fn store(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.root.join("logs"))?;
        std::fs::write(self.root.join("layout.json"), serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }
}

/// Directory of bound namespaces, sockets and pid files.
pub fn run_root() -> PathBuf {
    PathBuf::from("/run/ephor-dev")
}

fn octet(last: u8) -> Ipv4Addr {
    let [a, b, c, _] = SUBNET.octets();
    Ipv4Addr::new(a, b, c, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_nodes_share_a_name_or_an_address() {
        let root = PathBuf::from("/x");
        let layout = Layout {
            root,
            masters: 7,
            workers: MAX_WORKERS,
            api_port: 6443,
            chaos: true,
            spares: MAX_SPARES,
            certificate_lifetime: None,
            max_token_expiration: None,
        };
        let nodes = layout.nodes();
        let names: std::collections::BTreeSet<_> = nodes.iter().map(|n| n.name.clone()).collect();
        let addresses: std::collections::BTreeSet<_> = nodes.iter().map(|n| n.address).collect();
        assert_eq!((names.len(), addresses.len()), (111, 111));
        assert!(nodes.iter().all(|n| n.host_link().len() <= 15));
    }
}
