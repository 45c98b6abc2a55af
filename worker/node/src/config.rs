//! The typed configuration of a worker. `ops/cli` fills it from `--config FILE` and flags;
//! `build.rs` reads it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use proto_api::node_labels::may_be_set_by_node;
use serde::{Deserialize, Serialize};

/// Configuration of a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct WorkerConfig {
    /// Name of the Node object; required here (`ops/cli` uses the hostname if none is given).
    pub name: String,
    /// Directory for certificates, images and pods.
    pub data_dir: PathBuf,
    /// Directory for sockets and other files that are lost at a reboot.
    pub run_dir: PathBuf,
    /// Address at which masters and other nodes reach this node.
    pub address: IpAddr,
    /// Port of the node's HTTPS server (logs, exec, port-forward).
    pub node_port: u16,
    /// Port of the node's image service for operators.
    pub admin_port: u16,
    /// Port on 127.0.0.1 of the load balancer in front of the masters' APIs.
    pub balancer_port: u16,
    /// Peer addresses (`HOST:PORT`) of masters to join, tried in order; empty to use only stored credentials.
    pub join: Vec<String>,
    /// Join token for workers; `None` if the worker has joined already.
    pub token: Option<String>,
    /// Socket of a CRI runtime to use; `None` for the embedded runtime.
    pub cri_socket: Option<PathBuf>,
    /// Prefix of every cgroup of this node.
    pub cgroup_root: PathBuf,
    /// Maximum number of pods on the node.
    pub max_pods: u32,
    /// Registries (`HOST[:PORT]`) accessed over plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Labels with which the Node is registered.
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

/// Reasons why a configuration is invalid; each text is one line and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The worker has no name.
    #[error("no name: give --name")]
    NoName,
    /// The address at which others reach this worker is not set.
    #[error("no address: give --address an IPv4 address of this machine that masters reach")]
    NoAddress,
    /// The address is IPv6, which the overlay does not support.
    #[error("the address {0} is not IPv4, which the pod network needs")]
    NotIpv4(IpAddr),
    /// A label that nodes may not set: the API server would refuse the Node for ever.
    #[error(
        "nodes may not set the label {0}: of the labels of kubernetes.io and k8s.io they may set the kubelet's only; use `kubectl label node`"
    )]
    ForbiddenLabel(String),
}

impl WorkerConfig {
    /// Checks the configuration before anything is changed on the host.
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

    /// Returns the node's IPv4 address: the built-in network needs one.
    pub fn ipv4(&self) -> Result<Ipv4Addr, Error> {
        match self.address {
            IpAddr::V4(address) => Ok(address),
            other @ IpAddr::V6(_) => Err(Error::NotIpv4(other)),
        }
    }

    /// Returns the socket of the CRI runtime, embedded or configured.
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
        assert!(
            refused.to_string().starts_with("nodes may not set the label node-role.kubernetes.io/worker:")
        );
    }
}
