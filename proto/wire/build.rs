//! Generates the tonic code from the .proto files of this crate.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tonic_prost_build::configure().compile_protos(
        &["proto/raft.proto", "proto/cluster.proto", "proto/image.proto", "proto/chaos.proto"],
        &["proto"],
    )?;
    Ok(())
}
