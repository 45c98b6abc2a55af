//! The node's network: pod addresses and interfaces, the overlay between nodes, service routing, cluster
//! DNS, the balancer in front of the masters, and the CNI plugin.
//!
//! `worker/node` and `master/node` start it with [`Network::start`]; the container runtime attaches pods
//! through [`PodNetwork`]. It needs root, the `nft` program, and acts in the network namespace of the
//! process alone. Files, from the outside in:
//!
//! | file | does |
//! | --- | --- |
//! | `network.rs` | puts everything together; `cleanup` |
//! | `watch.rs`, `state.rs` | what the API says, cut down |
//! | `overlay/` | VXLAN device, routes, neighbours |
//! | `pod/`, `ipam.rs` | addresses and veth pairs, host ports, masquerading |
//! | `proxy/` | Services to nftables |
//! | `dns/` | cluster DNS |
//! | `balancer/` | TCP balancer over the masters |
//! | `cni.rs` | `ephor cni` |
//! | `netlink.rs`, `nft.rs`, `sysctl.rs` | the ways into the kernel |

pub mod balancer;
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
pub mod state;
pub mod sysctl;
pub mod watch;

pub use balancer::{Balancer, BalancerConfig, ListenerLimits, Probe, ReadyzProbe, TcpProbe};
pub use cni::cni_main;
pub use config::{DnsConfig, NetworkConfig, OverlayConfig};
pub use network::{Network, cleanup};
pub use pod::{PodNetwork, PodParameters, PortMapping};
pub use state::Protocol;
