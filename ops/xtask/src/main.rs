//! `cargo xtask`: tasks that developers and CI run on the source itself; one module per subcommand.

mod fuzz;
mod schema;
mod tidy;
mod verify;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Tasks on Ephor's own source.
#[derive(Debug, Parser)]
#[command(name = "xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check everything that needs no cluster; changes nothing.
    Verify,
    /// Format and apply what clippy can mend by itself.
    Fix,
    /// Check the dependency arrows, headers, lengths and the names in ARCHITECTURE.md.
    Tidy,
    /// Run the simulation for many seeds; a seed that fails is made smaller and kept.
    Fuzz(fuzz::Args),
    /// Switch on each planted bug in turn and see that the simulation fails.
    Planted(fuzz::planted::Args),
    /// Make the schema table from Kubernetes' Go types.
    Schema(schema::Args),
}

fn main() -> Result<()> {
    let root = root();
    match Cli::parse().task {
        Task::Verify => verify::verify(&root),
        Task::Fix => verify::fix(&root),
        Task::Tidy => tidy::run(&root),
        Task::Fuzz(args) => fuzz::run(&root, args),
        Task::Planted(args) => fuzz::planted::run(&root, &args),
        Task::Schema(args) => schema::run(&args),
    }
}

/// Root of the workspace this program was built from.
fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
