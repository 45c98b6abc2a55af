//! The agent: kubelet's twin. A Kubernetes API client on one side, a CRI client on the other; it runs the pods bound to its node.
//!
//! ```text
//!  API watch -> pod_source -> pod_manager -> pod_worker (one task a pod) -> sync -> volumes, CRI
//!                                   ^                        |
//!            CRI events -> cri::events, probes --wake--------+--> status::writer -> API
//! ```
//!
//! What runs is read from the runtime, by the labels kubelet uses, never from a file of the agent's own: a restarted agent finds its
//! pods again and leaves them alone. The node's HTTPS server is in [`server`], the Node object and its Lease in [`node`].
//!
//! `worker/node` calls [`run`]; everything else here is reached from `startup.rs`.

mod admission;
mod backoff;
mod cgroups;
mod clock;
pub mod config;
mod context;
pub mod cri;
mod dns;
mod env;
pub mod error;
mod events;
mod gc;
mod hosts;
mod image_gc;
mod images;
mod lifecycle;
mod logs;
mod node;
mod objects;
mod pod;
mod pod_manager;
mod pod_source;
mod pod_worker;
mod probes;
mod protection;
mod pull_secrets;
mod resources;
pub mod server;
mod services;
mod startup;
mod status;
mod sync;

pub use config::AgentConfig;
pub use error::Error;
pub use node::health::NodeHealth;
pub use server::tls::serving_config;
pub use startup::run;
