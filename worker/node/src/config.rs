//! The typed configuration of a worker. `ops/cli` fills it from `--config FILE`
//! and flags; `build.rs` is its only reader.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use proto_api::node_labels::may_be_set_by_node;
use serde::{Deserialize, Serialize};

/// Everything a worker is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct WorkerConfig {
    /// The name of its Node object; its hostname by default.
    pub name: String,
    /// Where certificates, images and pods lie.
    pub data_dir: PathBuf,
    /// Where sockets and what does not outlive a boot lie.
    pub run_dir: PathBuf,
    /// The address masters and other nodes reach this one at.
    pub address: IpAddr,
    /// Port of the node's HTTPS server (logs, exec, port-forward).
    pub node_port: u16,
    /// Port of the node's image service for operators.
    pub admin_port: u16,
    /// The port on 127.0.0.1 behind which the masters are balanced.
    pub balancer_port: u16,
    /// Peer addresses (`HOST:PORT`) of masters to join, tried in order.
    pub join: Vec<String>,
    /// The join token for workers.
    pub token: Option<String>,
    /// A CRI runtime to use instead of the embedded one.
    pub cri_socket: Option<PathBuf>,
    /// Prefix of every cgroup of this node.
    pub cgroup_root: PathBuf,
    /// The most pods it runs.
    pub max_pods: u32,
    /// Registries (`HOST[:PORT]`) spoken to over plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Labels the Node registers with.
    pub labels: std::collections::BTreeMap<String, String>,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            data_dir: "/var/lib/ephor/worker".into(),
            run_dir: "/run/ephor".into(),
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            node_port: 10250,
            admin_port: 10260,
            balancer_port: 7443,
            join: Vec::new(),
            token: None,
            cri_socket: None,
            cgroup_root: "/ephor".into(),
            max_pods: 110,
            insecure_registries: Vec::new(),
            labels: std::collections::BTreeMap::new(),
        }
    }
}

/// Why a configuration is refused; each text is one line and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The worker has no name.
    #[error("no name: give --name")]
    NoName,
    /// No address that others reach this worker at.
    #[error("no address: give --address an IPv4 address of this machine that masters reach")]
    NoAddress,
    /// An IPv6 address, which the overlay does not speak.
    #[error("the address {0} is not IPv4, which the pod network needs")]
    NotIpv4(IpAddr),
    /// The API server would refuse the Node for ever.
    #[error(
        "the label {0} is not a node's to set: labels of kubernetes.io and k8s.io are, but for those of the kubelet, the operators'; set it with kubectl label node"
    )]
    ForbiddenLabel(String),
}

impl WorkerConfig {
    /// Refuses what cannot work, before anything is touched.
    pub fn validate(&self) -> Result<(), Error> {
        if self.name.is_empty() {
            return Err(Error::NoName);
        }
        if self.address.is_unspecified() {
            return Err(Error::NoAddress);
        }
        if let Some(label) = self.labels.keys().find(|label| !may_be_set_by_node(label)) {
            return Err(Error::ForbiddenLabel(label.clone()));
        }
        self.ipv4().map(drop)
    }

    /// The node's address; the built-in network is IPv4.
    pub fn ipv4(&self) -> Result<Ipv4Addr, Error> {
        match self.address {
            IpAddr::V4(address) => Ok(address),
            other @ IpAddr::V6(_) => Err(Error::NotIpv4(other)),
        }
    }

    /// The socket of the CRI runtime.
    pub fn cri_socket(&self) -> PathBuf {
        self.cri_socket.clone().unwrap_or_else(|| self.run_dir.join("cri.sock"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_does_not_start_with_labels_it_could_never_register() {
        let with = |label: &str| WorkerConfig {
            name: "n".to_owned(),
            address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
            labels: [(label.to_owned(), String::new())].into(),
            ..WorkerConfig::default()
        };
        assert!(with("topology.kubernetes.io/zone").validate().is_ok());
        let refused = with("node-role.kubernetes.io/worker").validate().expect_err("refused");
        assert!(refused.to_string().starts_with("the label node-role.kubernetes.io/worker is not a node's"));
    }
}
