//! What the agent is told when it starts; `worker/node` fills it from flags and the join answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use tokio::sync::watch;

use crate::node::health::NodeHealth;

/// The agent's configuration. Durations and counts default to kubelet's.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// `metadata.name` of the Node, and its `kubernetes.io/hostname`.
    pub node_name: String,
    /// InternalIP of the node and `status.hostIP` of its pods.
    pub node_ip: IpAddr,
    /// The runtime's socket (embedded, containerd or CRI-O).
    pub cri_socket: PathBuf,
    /// Where pods' volumes lie: `ROOT/pods/UID`.
    pub root_dir: PathBuf,
    /// Container logs: `DIR/NAMESPACE_NAME_UID/CONTAINER/N.log`.
    pub pod_log_dir: PathBuf,
    /// Addresses that `ClusterFirst` pods resolve through.
    pub cluster_dns: Vec<IpAddr>,
    /// `cluster.local`
    pub cluster_domain: String,
    /// The node's own resolver file, for `Default` pods.
    pub resolv_conf: PathBuf,
    /// The most pods this node runs.
    pub max_pods: u32,
    /// Address of the HTTPS server; its port is in the Node's daemonEndpoints.
    pub listen: SocketAddr,
    /// TLS of the HTTPS server, see [`crate::serving_config`]; a new value takes effect for new connections.
    pub serving_tls: watch::Receiver<Arc<rustls::ServerConfig>>,
    /// Parent of `kubepods`; empty for the root of the hierarchy. Nodes that share a machine need one each.
    pub cgroup_root: String,
    /// Labels the Node gets besides the standard ones.
    pub labels: BTreeMap<String, String>,
    /// Taints of a newly registered Node.
    pub taints: Vec<Taint>,
    /// Capacity to report instead of what `/proc` says, by resource name (quantities as text).
    pub capacity: BTreeMap<String, String>,
    /// What is kept back from pods, by resource name.
    pub reserved: BTreeMap<String, String>,
    /// Size at which a container log is rotated, in bytes.
    pub log_max_bytes: u64,
    /// How many files a container's log may have.
    pub log_max_files: u32,
    /// Image disk use in percent at which unused images are removed, and down to which.
    pub image_gc_percent: (u64, u64),
    /// How often Lease and Node status are renewed without a change.
    pub lease_period: Duration,
    /// See `lease_period`.
    pub node_status_period: Duration,
    /// Where the verdict on this node is published: for the beats to the masters.
    pub health: watch::Sender<NodeHealth>,
    /// Version shown as `nodeInfo.kubeletVersion`.
    pub version: String,
}

impl AgentConfig {
    /// A configuration with every default; what has none is an argument.
    pub fn new(
        node_name: impl Into<String>,
        node_ip: IpAddr,
        cri_socket: impl Into<PathBuf>,
        root_dir: impl Into<PathBuf>,
        serving_tls: watch::Receiver<Arc<rustls::ServerConfig>>,
    ) -> Self {
        let root_dir = root_dir.into();
        Self {
            node_name: node_name.into(),
            node_ip,
            cri_socket: cri_socket.into(),
            pod_log_dir: root_dir.join("logs/pods"),
            root_dir,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            max_pods: 110,
            listen: SocketAddr::from(([0, 0, 0, 0], 10250)),
            serving_tls,
            cgroup_root: String::new(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            capacity: BTreeMap::new(),
            reserved: BTreeMap::new(),
            log_max_bytes: 10 << 20,
            log_max_files: 5,
            image_gc_percent: (85, 80),
            lease_period: Duration::from_secs(30),
            health: watch::Sender::default(),
            node_status_period: Duration::from_secs(300),
            version: "v1.35.0+ephor".to_owned(),
        }
    }
}
