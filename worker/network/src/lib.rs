//! The node's network: pod addresses and interfaces, the overlay between nodes, service routing, cluster
//! DNS, the balancer in front of the masters, and the CNI plugin.
//!
//! `worker/node` and `master/node` start it with [`NodeNetwork::start`]; the container runtime attaches pods
//! through [`PodNetwork`]. It needs root and the `nft` program, and changes only the network namespace of the
//! process. Files, from the top level down:
//!
//! | file | does |
//! | --- | --- |
//! | `network.rs` | connects all parts; `cleanup` |
//! | `watch.rs`, `cluster_state.rs` | the node's copy of Services, EndpointSlices and Nodes |
//! | `overlay/` | VXLAN device, routes, neighbours |
//! | `pod/`, `ipam.rs` | addresses and veth pairs, host ports, masquerading |
//! | `proxy/` | Services to nftables |
//! | `dns/` | cluster DNS |
//! | `balancer/` | TCP balancer over the masters |
//! | `cni.rs` | `ephor cni` |
//! | `netlink.rs`, `nft.rs`, `sysctl.rs` | requests to the kernel |

pub mod balancer;
pub mod cluster_state;
pub mod cni;
pub mod config;
pub mod dns;
pub mod ipam;
pub mod netlink;
pub mod network;
pub mod nft;
pub mod overlay;
pub mod pod;
pub mod proxy;
pub mod sysctl;
pub mod watch;

pub use balancer::{Balancer, BalancerConfig, ListenerLimits, MasterProbe, ReadyzProbe, TcpProbe};
pub use cluster_state::Protocol;
pub use cni::cni_main;
pub use config::{DnsConfig, NetworkConfig, OverlayConfig};
pub use network::{NodeNetwork, cleanup};
pub use pod::{PodNetwork, PodParameters, PortMapping};
