//! The Kubernetes API server of a master: TLS listener, filter chain, handlers and the generic registry over
//! `consensus`. `master/node` builds an [`ApiServer`] and serves it; scheduler and controllers reach it
//! through an in-process client.
//!
//! A request goes `server.rs` (or `local.rs`) -> `chain.rs` -> `handlers/` -> `decode.rs`, `patch/` ->
//! `registry/create.rs`, `registry/update.rs` or `registry/delete.rs`, each with `admission/` and the kind's
//! strategy -> `consensus`.

mod admission;
mod api;
pub mod authn;
mod authz;
mod body;
mod chain;
pub mod context;
pub mod decode;
mod dial;
pub mod discovery;
mod errors;
mod handlers;
mod health;
mod heavy;
pub mod json_fields;
mod limits;
mod local;
mod metrics;
mod negotiate;
mod object_lookup;
pub mod openapi;
mod options;
pub mod patch;
mod proxy;
pub mod registry;
mod request_info;
mod respond;
mod server;
pub mod settings;
pub mod table;
mod tls;
mod watch;

pub use authn::TokenAuthenticator;
pub use authn::signing_keys::ServiceAccountKeys;
pub use context::UserInfo;
pub use server::{ApiServer, Config, Error, ServerLimits};
pub use settings::ClusterSettings;
pub use tls::TlsIdentity;
