//! The agent, which takes kubelet's place: it runs the pods bound to its node, as a client of the Kubernetes
//! API on one side and of the CRI on the other.
//!
//! ```text
//!  API watch -> pod_source -> pod_manager -> pod_worker (one task for each pod) -> sync -> volumes, CRI
//!                                   ^                        |
//!            CRI events -> cri::events, probes --wake--------+--> status::writer -> API
//! ```
//!
//! The agent learns what runs from the runtime, by kubelet's labels, never from a file of its own: a
//! restarted agent finds its pods again and leaves them running. The node's HTTPS server is in [`server`],
//! the Node object and its Lease in [`node`].
//!
//! `worker/node` calls [`run`]; all other code of this crate is called from `startup.rs`.

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
mod object_cache;
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

pub use config::{AgentConfig, CertificateEnds};
pub use error::Error;
pub use node::health::NodeHealth;
pub use server::tls::serving_config;
pub use startup::run;
