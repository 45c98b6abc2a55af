//! The gRPC contract between Ephor processes: the tonic code made from
//! `proto/*.proto`, and the size limits every server and client sets. Callers
//! are `consensus` (raft), `master/node` and `worker/node` (join, liveness) and
//! `worker/runtime` (images).

pub mod settings;
pub mod token;

/// The largest gRPC message a peer accepts or sends, in bytes.
///
/// An append batch of openraft has no byte cap of its own, so the log store
/// caps batches well below this (tonic's default of 4 MiB stalls replication).
pub const MESSAGE_LIMIT_BYTES: usize = 32 * 1024 * 1024;

/// The size of one snapshot chunk, in bytes.
pub const SNAPSHOT_CHUNK_BYTES: usize = 1024 * 1024;

/// Raft traffic between masters.
#[allow(missing_docs, reason = "generated from raft.proto, which carries the comments")]
pub mod raft {
    tonic::include_proto!("ephor.raft.v1");
}

/// Joining, liveness and membership.
#[allow(missing_docs, reason = "generated from cluster.proto, which carries the comments")]
pub mod cluster {
    tonic::include_proto!("ephor.cluster.v1");
}

/// Images of the embedded runtime.
#[allow(missing_docs, reason = "generated from image.proto, which carries the comments")]
pub mod image {
    tonic::include_proto!("ephor.image.v1");
}

/// The chaos agent of a node.
#[allow(missing_docs, reason = "generated from chaos.proto, which carries the comments")]
pub mod chaos {
    tonic::include_proto!("ephor.chaos.v1");
}
