//! Cluster-wide settings that API answers depend on. `master/node` fills them from its configuration;
//! strategies and admission read them.

use std::ops::RangeInclusive;

use ipnet::IpNet;

/// Settings every master of a cluster shares.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// Addresses of Services; the first one is `default/kubernetes`.
    pub service_cidr: IpNet,
    /// Ports of NodePort Services.
    pub node_port_range: RangeInclusive<u16>,
    /// The cluster's DNS domain, such as `cluster.local`.
    pub cluster_domain: String,
    /// The issuer of ServiceAccount tokens, and their default audience.
    pub service_account_issuer: String,
    /// `tolerationSeconds` that admission adds for not-ready and unreachable nodes.
    pub default_toleration_seconds: i64,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            service_cidr: IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 16)),
            node_port_range: 30000..=32767,
            cluster_domain: "cluster.local".to_owned(),
            service_account_issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            default_toleration_seconds: 5,
        }
    }
}
