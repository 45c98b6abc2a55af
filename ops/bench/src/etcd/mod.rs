//! A part of etcd's gRPC API, as client and, so that both sides are asked in the
//! same way, as server for Ephor's store: put, linearizable get, watch, status
//! and compaction.

mod client;
mod messages;
mod server;

pub use client::Client;
pub use messages::WatchResponse;
pub use server::serve;
