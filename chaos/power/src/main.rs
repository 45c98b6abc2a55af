//! `power-cuts`: the log and the object store of a master on a disk that loses
//! power again and again (`chaos/disk`). A child process writes and says what was
//! acknowledged; the power goes at a moment that the seed decides; the next child
//! opens what survived and says what is there. Nothing acknowledged, or read
//! after a start, may be missing, nothing else may be there, and every start
//! must succeed.
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

/// Cuts the power below a master's log and object store and checks what survives.
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
    /// One life (started by the harness)
    #[command(hide = true)]
    Life(Life),
}

/// What a life is told.
#[derive(Debug, clap::Args)]
struct Life {
    /// Where log and objects lie
    #[arg(long)]
    directory: PathBuf,
    /// Decides what is written
    #[arg(long)]
    seed: u64,
    /// The first version it may write
    #[arg(long)]
    from: u64,
    /// Who writes
    #[arg(long)]
    kind: Kind,
    /// Leave these syncs out
    #[arg(long)]
    without: Option<Without>,
}

/// Who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Log and store by hand.
    Store,
    /// A cluster of one.
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
