//! Cluster-wide settings on which API answers depend. `master/node` sets them from its configuration;
//! strategies and admission read them.

use std::ops::RangeInclusive;

use ipnet::IpNet;

/// Settings every master of a cluster shares.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// IP range of Services; its first address is that of `default/kubernetes`.
    pub service_cidr: IpNet,
    /// Range of the ports of NodePort Services.
    pub node_port_range: RangeInclusive<u16>,
    /// The cluster's DNS domain, such as `cluster.local`.
    pub cluster_domain: String,
    /// Issuer of ServiceAccount tokens, which is also their default audience.
    pub service_account_issuer: String,
    /// Longest lifetime of a ServiceAccount token in seconds, whatever a request asks for (kube-apiserver's
    /// `--service-account-max-token-expiration`); `None` for no limit but that of the API.
    pub max_token_seconds: Option<i64>,
    /// `tolerationSeconds` that admission sets for not-ready and unreachable nodes.
    pub default_toleration_seconds: i64,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            service_cidr: IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 16)),
            node_port_range: 30000..=32767,
            cluster_domain: "cluster.local".to_owned(),
            service_account_issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            max_token_seconds: None,
            default_toleration_seconds: 5,
        }
    }
}
