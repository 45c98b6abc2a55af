//! `power-cuts`: tests the log and the object store of a master on a disk that loses power again and again
//! (`chaos/disk`). A child process writes and reports what was acknowledged; the power is cut at a moment
//! that the seed decides; the next child opens what survived and reports what it found. Nothing that was
//! acknowledged, or read after a start, may be missing, nothing else may be there, and every start must
//! succeed.
//!
//! | file | does |
//! | --- | --- |
//! | `run.rs` | one life after the other: mount, child, power cut, check |
//! | `ledger.rs` | what was started, acknowledged and seen, and what may be there |
//! | `store.rs` | a child that uses log and store by hand, with purges and installed snapshots |
//! | `master.rs` | a child that is a cluster of one: the consensus above log and store |
//! | `value.rs` | what is written, so that a wrong byte is found |
//! | `lazy.rs` | a disk that leaves syncs out, to see that the check fails |

mod lazy;
mod ledger;
mod master;
mod run;
mod store;
mod value;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::lazy::Without;

/// Cuts the power of a disk below a master's log and object store, and checks what survives.
#[derive(Debug, Parser)]
#[command(name = "power-cuts", version)]
struct CommandLine {
    #[command(flatten)]
    run: run::Arguments,
    #[command(subcommand)]
    child: Option<Child>,
}

#[derive(Debug, Subcommand)]
enum Child {
    /// Run one child process (used by the harness)
    #[command(hide = true)]
    Life(Life),
}

/// Arguments of one life: one run of a child process until the power is cut.
#[derive(Debug, clap::Args)]
struct Life {
    /// Directory of the log and the objects
    #[arg(long)]
    directory: PathBuf,
    /// Seed that decides what is written
    #[arg(long)]
    seed: u64,
    /// First version that the child may write
    #[arg(long)]
    from: u64,
    /// Kind of child process
    #[arg(long)]
    kind: Kind,
    /// Syncs to leave out
    #[arg(long)]
    without: Option<Without>,
}

/// Kind of child process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Uses log and store directly.
    Store,
    /// Runs a cluster of one master.
    Master,
}

fn main() -> ExitCode {
    let arguments = CommandLine::parse();
    let result = match arguments.child {
        Some(Child::Life(life)) => live(&life).map(|()| ExitCode::SUCCESS),
        None => run::run(&arguments.run),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn live(life: &Life) -> Result<()> {
    match life.kind {
        Kind::Store => store::live(life),
        Kind::Master => master::live(life),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
