//! Runs a worker: joins the cluster, sends heartbeats, and starts balancer, network, runtime and agent.
//! `ops/cli` calls [`run`] and [`cleanup`].
//!
//! | file | does |
//! | --- | --- |
//! | `config.rs` | the typed configuration |
//! | `credentials.rs` | joining; certificates on disk |
//! | `renewal.rs` | renewal of the certificates |
//! | `api_client.rs` | the client of the API, whose certificate is renewed |
//! | `heartbeat.rs` | heartbeats to the leader; the list of masters |
//! | `build.rs` | builds and runs all parts |
//! | `sandbox.rs` | connects the runtime to the pod network |
//! | `tls.rs` | TLS configurations from PEM |
//! | `images.rs` | the image service for operators |

mod api_client;
mod build;
pub mod config;
pub mod credentials;
pub mod heartbeat;
mod images;
mod renewal;
mod sandbox;
pub mod tls;

pub use build::{Error, cleanup, run};
