//! `ephor-bench`: measures Ephor and its alternatives in one run on one machine,
//! and prints ratios. `store` compares the replicated store
//! with a real 3-member etcd, `api` two API servers, `log` implementations of
//! the Raft log.

mod api;
mod etcd;
mod growth;
mod log;
mod member;
mod pki;
mod store;
mod timing;
mod usage;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "ephor-bench", about, version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare the replicated store with a 3-member etcd, in a Markdown table
    Store(store::Arguments),
    /// Compare create, get and list of two API servers
    Api {
        /// Path of Ephor's kubeconfig
        #[arg(long)]
        kubeconfig: PathBuf,
        /// Path of the stock cluster's kubeconfig [default: Ephor is measured alone]
        #[arg(long)]
        stock_kubeconfig: Option<PathBuf>,
        /// Duration of each line in seconds
        #[arg(long, default_value = "5", value_name = "SECONDS")]
        seconds: u64,
        /// Number of pods in each list
        #[arg(long, default_value = "1000")]
        pods: usize,
    },
    /// Compare the Raft log with the raft-log crate and sled
    Log {
        /// Directory of the data
        #[arg(long, default_value = "/var/tmp")]
        directory: PathBuf,
        /// Duration of each line in seconds
        #[arg(long, default_value = "3", value_name = "SECONDS")]
        seconds: u64,
    },
    /// Measure disk and memory of the object store under endless updates of the same keys
    Growth {
        /// Directory of the data
        #[arg(long, default_value = "/var/tmp")]
        directory: PathBuf,
        #[command(flatten)]
        updates: growth::GrowthArgs,
    },
    /// Run one Ephor store (used by `store`)
    #[command(hide = true)]
    Member(member::Arguments),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let span = Duration::from_secs;
    match Arguments::parse().command {
        Command::Store(arguments) => store::run(arguments).await,
        Command::Api { kubeconfig, stock_kubeconfig, seconds, pods } => {
            api::run(&kubeconfig, stock_kubeconfig.as_deref(), span(seconds), pods).await
        }
        Command::Log { directory, seconds } => {
            tokio::task::spawn_blocking(move || log::run(&directory, span(seconds))).await?
        }
        Command::Growth { directory, updates } => {
            let place = tempfile::tempdir_in(directory)?;
            tokio::task::spawn_blocking(move || growth::run(updates, place.path())).await?
        }
        Command::Member(arguments) => member::run(arguments).await,
    }
}
