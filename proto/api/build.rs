//! Compresses the descriptions of the schema table, which only OpenAPI reads, into the build output.

use std::io::Write;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=src/schema/docs.txt");
    println!("cargo:rerun-if-changed=build.rs");
    let text = std::fs::read("src/schema/docs.txt")?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("docs.gz");
    let mut encoder = flate2::write::GzEncoder::new(std::fs::File::create(out)?, flate2::Compression::best());
    encoder.write_all(&text)?;
    encoder.finish()?;
    Ok(())
}
