//! The gRPC contract between Ephor processes: the tonic code generated from `proto/*.proto`, and the size
//! limits that every server and client sets. Used by `consensus` (raft), `master/node` and `worker/node`
//! (join, liveness) and `worker/runtime` (images).

pub mod settings;
pub mod token;

/// Maximum bytes of a gRPC message that a peer accepts or sends.
///
/// openraft does not limit the bytes of an append batch, so the log store limits batches well below this
/// (tonic's default of 4 MiB stalls replication).
pub const MESSAGE_LIMIT_BYTES: usize = 32 * 1024 * 1024;

/// Bytes of one snapshot chunk.
pub const SNAPSHOT_CHUNK_BYTES: usize = 1024 * 1024;

/// Messages and services of Raft between masters.
#[allow(missing_docs, reason = "generated from raft.proto, which carries the comments")]
pub mod raft {
    tonic::include_proto!("ephor.raft.v1");
}

/// Messages and services of joining, liveness and membership.
#[allow(missing_docs, reason = "generated from cluster.proto, which carries the comments")]
pub mod cluster {
    tonic::include_proto!("ephor.cluster.v1");
}

/// Messages and services of the embedded runtime's images.
#[allow(missing_docs, reason = "generated from image.proto, which carries the comments")]
pub mod image {
    tonic::include_proto!("ephor.image.v1");
}

/// Messages and services of a node's chaos agent.
#[allow(missing_docs, reason = "generated from chaos.proto, which carries the comments")]
pub mod chaos {
    tonic::include_proto!("ephor.chaos.v1");
}
