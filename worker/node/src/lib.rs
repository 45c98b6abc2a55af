//! Wires a worker: joins the cluster, beats, and starts balancer, network,
//! runtime and agent. `ops/cli` calls [`run`] and [`cleanup`].
//!
//! | file | does |
//! | --- | --- |
//! | `config.rs` | the typed configuration |
//! | `identity.rs` | joining; certificates on disk |
//! | `heartbeat.rs` | beats to the leader; who the masters are |
//! | `build.rs` | puts the parts together |
//! | `sandbox.rs` | the runtime's seam to the pod network |
//! | `tls.rs` | TLS configurations from PEM |
//! | `images.rs` | the image service for operators |

mod build;
pub mod config;
pub mod heartbeat;
pub mod identity;
mod images;
mod sandbox;
pub mod tls;

pub use build::{Error, cleanup, run};
