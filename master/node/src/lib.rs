//! Builds a master from its configuration and an `env`: keys, consensus, API
//! server, peer port, and the tasks of a leader. `ops/cli` calls [`build`]
//! and runs what it returns; the simulation does the same with another `env`.
//!
//! | file | does |
//! | --- | --- |
//! | `config.rs` | the typed configuration |
//! | `identity.rs` | creating and joining a cluster: keys, node id, cluster settings |
//! | `build.rs` | puts the parts together |
//! | `certificates.rs` | the certificates of this master, renewed while it runs |
//! | `leader.rs` | starts and stops the tasks of a leader |
//! | `liveness.rs`, `witnesses.rs`, `health.rs` | which nodes send beats, which masters answer |
//! | `undecodable.rs` | the alarm about objects that do not decode |
//! | `peer.rs`, `join.rs`, `admin.rs` | the services of the peer port |
//! | `node_names.rs` | which names nodes may have |
//! | `autopilot.rs` | events about what the leader did to the group of masters |
//! | `backup/` | backup, restore and scheduled backups |
//! | `recover.rs` | makes a cluster of one from a surviving master |
//! | `pki/`, `tokens.rs` | certificates and join tokens |

pub mod admin;
mod autopilot;
pub mod backup;
mod build;
mod certificates;
pub mod config;
mod health;
mod identity;
mod join;
mod leader;
mod liveness;
mod members;
mod node_names;
mod peer;
pub mod pki;
pub mod recover;
pub mod tokens;
mod undecodable;
mod witnesses;

pub use build::{Error, Master, build};
pub use consensus::{Objects, Restored};
pub use identity::{Error as IdentityError, create, prepare};
pub use proto_api::node_labels::SENDS_BEATS;
