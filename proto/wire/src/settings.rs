//! Settings that every node of a cluster shares. The first master fixes them at `--init`; joiners receive
//! them as JSON in the join answer, so that no two nodes can disagree about an address range.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// The settings of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ClusterSettings {
    /// Range of Pod addresses; every node gets a /24 of it.
    pub pod_cidr: Ipv4Net,
    /// Range of the ClusterIPs of Services.
    pub service_cidr: Ipv4Net,
    /// The ClusterIP of the cluster DNS.
    pub dns_address: Ipv4Addr,
    /// The DNS domain of the cluster.
    pub cluster_domain: String,
    /// `HOST:PORT` of an external load balancer in front of the masters; `None` if there is none.
    pub control_plane_endpoint: Option<String>,
    /// First and last port of NodePort Services.
    pub node_port_range: (u16, u16),
    /// VXLAN network identifier of the overlay.
    pub vxlan_id: u32,
    /// UDP port of the overlay.
    pub vxlan_port: u16,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            pod_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 42, 0, 0), 16),
            service_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
            dns_address: Ipv4Addr::new(10, 96, 0, 10),
            cluster_domain: "cluster.local".into(),
            control_plane_endpoint: None,
            node_port_range: (30000, 32767),
            vxlan_id: 42,
            vxlan_port: 8472,
        }
    }
}

/// Why settings are refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The DNS address is no ClusterIP.
    #[error("the DNS address {dns} is not in the service range {range}")]
    DnsOutsideRange {
        /// The configured address.
        dns: Ipv4Addr,
        /// The service range that has to contain the address.
        range: Ipv4Net,
    },
    /// The ranges of Pods and Services share addresses.
    #[error("the pod range {pods} and the service range {services} overlap")]
    Overlap {
        /// The pod range.
        pods: Ipv4Net,
        /// The service range.
        services: Ipv4Net,
    },
    /// The text is not the JSON of settings.
    #[error("the cluster settings cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl ClusterSettings {
    /// Refuses address ranges that cannot work together.
    pub fn validate(&self) -> Result<(), Error> {
        if !self.service_cidr.contains(&self.dns_address) {
            return Err(Error::DnsOutsideRange { dns: self.dns_address, range: self.service_cidr });
        }
        if self.pod_cidr.contains(&self.service_cidr) || self.service_cidr.contains(&self.pod_cidr) {
            return Err(Error::Overlap { pods: self.pod_cidr, services: self.service_cidr });
        }
        Ok(())
    }

    /// Returns the ClusterIP of Service `default/kubernetes`: the first address of the range.
    pub fn api_service_address(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(u32::from(self.service_cidr.network()) + 1))
    }

    /// Returns the settings as JSON, for a join answer and the file `DATA/cluster.json`.
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// Reads the JSON of [`Self::to_json`] and validates the settings.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let settings: Self = serde_json::from_str(text)?;
        settings.validate()?;
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_the_wire() {
        let settings = ClusterSettings { vxlan_id: 7, ..ClusterSettings::default() };
        assert_eq!(ClusterSettings::from_json(&settings.to_json()).unwrap(), settings);
    }

    #[test]
    fn a_dns_address_outside_of_the_service_range_is_refused() {
        let settings = ClusterSettings { dns_address: Ipv4Addr::new(10, 42, 0, 10), ..Default::default() };
        assert!(matches!(settings.validate(), Err(Error::DnsOutsideRange { .. })));
    }

    #[test]
    fn overlapping_ranges_are_refused() {
        let settings =
            ClusterSettings { pod_cidr: "10.0.0.0/8".parse().unwrap(), ..ClusterSettings::default() };
        assert!(matches!(settings.validate(), Err(Error::Overlap { .. })));
    }
}
