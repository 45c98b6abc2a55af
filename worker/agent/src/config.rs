//! Configuration of the agent; `worker/node` fills it from flags and the join answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Taint;
use tokio::sync::watch;

use crate::node::health::NodeHealth;

/// Names of the node's certificates with the end of their validity.
pub type CertificateEnds = Vec<(&'static str, SystemTime)>;

/// The agent's configuration. Durations and counts default to kubelet's values.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Name of the Node object, also its `kubernetes.io/hostname`.
    pub node_name: String,
    /// InternalIP of the node, also `status.hostIP` of its pods.
    pub node_ip: IpAddr,
    /// Socket of the runtime (embedded, containerd or CRI-O).
    pub cri_socket: PathBuf,
    /// Data directory of the agent; volumes are in `ROOT/pods/UID`.
    pub root_dir: PathBuf,
    /// Directory for container logs: `DIR/NAMESPACE_NAME_UID/CONTAINER/N.log`.
    pub pod_log_dir: PathBuf,
    /// DNS servers for pods with dnsPolicy `ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    /// DNS domain of the cluster, usually `cluster.local`.
    pub cluster_domain: String,
    /// The node's own resolver file, for pods with dnsPolicy `Default`.
    pub resolv_conf: PathBuf,
    /// Maximum number of pods on this node.
    pub max_pods: u32,
    /// Listening address of the HTTPS server; its port is reported in the Node's daemonEndpoints.
    pub listen: SocketAddr,
    /// TLS configuration of the HTTPS server, see [`crate::serving_config`]; a new value applies to new
    /// connections.
    pub serving_tls: watch::Receiver<Arc<rustls::ServerConfig>>,
    /// The node's certificates, for `/metrics`.
    pub certificates: watch::Receiver<CertificateEnds>,
    /// Parent of the `kubepods` cgroup; empty for the root of the hierarchy. Nodes that share a host need one
    /// each.
    pub cgroup_root: String,
    /// Additional labels of the Node besides the standard ones.
    pub labels: BTreeMap<String, String>,
    /// Taints with which a new Node is registered.
    pub taints: Vec<Taint>,
    /// Capacity to report instead of the detected one, by resource name (quantities as text).
    pub capacity: BTreeMap<String, String>,
    /// Resources reserved for the system and not given to pods, by resource name (quantities as text).
    pub reserved: BTreeMap<String, String>,
    /// Size at which a container log is rotated, in bytes.
    pub log_max_bytes: u64,
    /// Maximum number of log files of one container.
    pub log_max_files: u32,
    /// Usage of the image disk in percent at which unused images are removed, and the usage to reach by that.
    pub image_gc_percent: (u64, u64),
    /// Time between renewals of the Lease.
    pub lease_period: Duration,
    /// Maximum time between writes of the Node status if it does not change.
    pub node_status_period: Duration,
    /// Channel on which the node's health is published, for the heartbeats to the masters.
    pub health: watch::Sender<NodeHealth>,
    /// Version reported as `nodeInfo.kubeletVersion`.
    pub version: String,
}

impl AgentConfig {
    /// Creates a configuration with all defaults; values without a default are arguments.
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
            certificates: watch::channel(Vec::new()).1,
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
