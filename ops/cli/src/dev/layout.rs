//! What a cluster of `ephor dev` is called and where it lies: pure arithmetic
//! over its size, so that `down` finds everything that `up` may have left,
//! also after a crash.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Nodes hang on this bridge of the host.
pub const BRIDGE: &str = "ephor-dev";
/// The /24 of the node addresses; the host has `.1` of it.
pub const SUBNET: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 0);
/// Namespaces, cgroups and interfaces start with this.
pub const PREFIX: &str = "ephor-";
/// The first master's last octet; the others follow.
const FIRST_MASTER: u8 = 11;
/// The first worker's last octet.
const FIRST_WORKER: u8 = 101;

/// What a node of the cluster does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Keeps the state.
    Master,
    /// Runs containers.
    Worker,
    /// A machine for a master that joins later: there is nothing on it but a chaos agent.
    Spare,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevNode {
    /// `m1`, `m2`, ..., `w1`, `w2`, ...
    pub name: String,
    /// Master or worker.
    pub role: Role,
    /// Its address on the bridge.
    pub address: Ipv4Addr,
}

impl DevNode {
    /// The name of its network namespace, as `ip netns` knows it.
    pub fn namespace(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// The host's end of its link; at most 15 characters.
    pub fn host_link(&self) -> String {
        format!("ephor-{}", self.name)
    }

    /// Below every cgroup controller's mount.
    pub fn cgroup_root(&self) -> String {
        format!("/ephor-dev/{}", self.name)
    }
}

/// The whole cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Layout {
    /// Where everything lies.
    pub root: PathBuf,
    /// How many masters.
    pub masters: u8,
    /// How many workers.
    pub workers: u8,
    /// The host's port of the balancer in front of the masters.
    pub api_port: u16,
    /// Whether every node has a chaos agent, and every master a disk that can fail.
    #[serde(default)]
    pub chaos: bool,
    /// How many spare machines there are.
    #[serde(default)]
    pub spares: u8,
    /// How long the certificates of masters and nodes live, in seconds; as usual where not said.
    #[serde(default)]
    pub certificate_lifetime: Option<u64>,
}

/// What has been done once for the whole cluster, and is never done again.
#[derive(Debug, Clone, Copy)]
pub enum Milestone {
    /// The cluster was created on its first master.
    Created,
    /// Every node has joined.
    Complete,
}

/// The largest number of workers that fits the address plan.
pub const MAX_WORKERS: u8 = 100;
/// The largest number of spare machines.
pub const MAX_SPARES: u8 = 4;

impl Layout {
    /// The address of the host on the bridge.
    pub fn host_address() -> Ipv4Addr {
        octet(1)
    }

    /// Every node: masters, workers, spare machines, which are numbered on from the masters.
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

    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<DevNode> {
        self.nodes().into_iter().find(|n| n.name == name)
    }

    /// The API addresses of the masters.
    pub fn api_addresses(&self) -> Vec<std::net::SocketAddr> {
        let masters = self.nodes().into_iter().filter(|n| n.role == Role::Master);
        masters.map(|n| (IpAddr::V4(n.address), 6443).into()).collect()
    }

    /// Where a node keeps its data.
    pub fn data_dir(&self, node: &DevNode) -> PathBuf {
        self.root.join("nodes").join(&node.name)
    }

    /// Where a worker keeps sockets and what does not outlive a boot.
    pub fn run_dir(&self, node: &DevNode) -> PathBuf {
        run_root().join(&node.name)
    }

    /// The socket of a worker's runtime.
    pub fn cri_socket(&self, node: &DevNode) -> PathBuf {
        self.run_dir(node).join("cri.sock")
    }

    /// The log of a node's process.
    pub fn log_file(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// Where the chaos agent of a node keeps its certificate, its journal and the
    /// socket of the node's disk.
    pub fn chaos_dir(&self, node: &DevNode) -> PathBuf {
        self.root.join("chaos").join(&node.name)
    }

    /// The operator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    fn milestone_file(&self, milestone: Milestone) -> PathBuf {
        self.root.join(match milestone {
            Milestone::Created => "created",
            Milestone::Complete => "complete",
        })
    }

    /// Whether this has been done.
    pub fn has_reached(&self, milestone: Milestone) -> bool {
        self.milestone_file(milestone).exists()
    }

    /// Writes down that this has been done.
    pub fn reached(&self, milestone: Milestone) -> anyhow::Result<()> {
        Ok(std::fs::write(self.milestone_file(milestone), "")?)
    }

    /// Reads the layout of the cluster that lies in `root`.
    pub fn load(root: &Path) -> anyhow::Result<Option<Self>> {
        match std::fs::read(root.join("layout.json")) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes it, before anything else is made.
    pub fn store(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.root.join("logs"))?;
        std::fs::write(self.root.join("layout.json"), serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }
}

/// Where held namespaces, sockets and pid files lie.
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
        };
        let nodes = layout.nodes();
        let names: std::collections::BTreeSet<_> = nodes.iter().map(|n| n.name.clone()).collect();
        let addresses: std::collections::BTreeSet<_> = nodes.iter().map(|n| n.address).collect();
        assert_eq!((names.len(), addresses.len()), (111, 111));
        assert!(nodes.iter().all(|n| n.host_link().len() <= 15));
    }
}
