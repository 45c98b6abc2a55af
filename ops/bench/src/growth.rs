//! Measures disk and memory under endless updates of the same keys: the object store
//! alone, with and without the rewriting of the database that a master does.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use proto_env::{CancellationToken, Env, TlsNetwork};
use storage::{Command, DataKey, Entry, Limits, Mutation, Rewritten, Store, Txn};

/// Number of updates in one log entry, and of entries in one batch, as under load.
const COMMANDS: u64 = 8;
const ENTRIES: u64 = 4;

/// Arguments of `ephor-bench growth`: size and number of the updates.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct GrowthArgs {
    /// Number of keys
    #[arg(long, default_value_t = 100)]
    keys: u64,
    /// Size of a value in bytes
    #[arg(long, default_value_t = 1024)]
    value_bytes: usize,
    /// Total number of updates
    #[arg(long, default_value_t = 500_000)]
    updates: u64,
    /// Never rewrite the database
    #[arg(long)]
    as_it_is: bool,
}

/// Performs the updates, and prints sizes ten times on the way.
pub fn run(arguments: GrowthArgs, directory: &Path) -> Result<()> {
    let env = Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new());
    let limits = Limits { history: Duration::from_secs(60), ..Limits::default() };
    let store = Store::open(directory, &DataKey::new([5; 32]), &env, limits)?;
    let value = Bytes::from(vec![7; arguments.value_bytes]);
    let started = Instant::now();
    let (mut index, mut done, mut rewritten, mut most) = (0, 0, 0, 0);
    println!("{:>9} {:>9} {:>9} {:>9} {:>9}", "updates", "disk MB", "live MB", "RSS MB", "seconds");
    for part in 1..=10 {
        while done < arguments.updates * part / 10 {
            let entries = (0..ENTRIES).map(|_| {
                index += 1;
                let commands = (0..COMMANDS).map(|_| {
                    done += 1;
                    command(
                        done,
                        index - 1,
                        &format!("/registry/core/configmaps/ns/{}", done % arguments.keys),
                        &value,
                    )
                });
                Entry { index, term: 1, commands: commands.collect(), raise: 0 }
            });
            store.apply(entries.collect(), index.to_le_bytes().to_vec())?;
            if index % 256 == 0 {
                let sizes = store.sizes();
                store.compact(sizes.revision.saturating_sub(20_000));
                most = most.max(sizes.disk_bytes);
                if !arguments.as_it_is && store.is_bloated() {
                    ensure!(store.rewrite()? == Rewritten::Done, "the rewrite was given up");
                    rewritten += 1;
                }
            }
        }
        store.sync()?;
        let (sizes, seconds) = (store.sizes(), started.elapsed().as_secs_f64());
        let mb = |bytes: u64| bytes as f64 / 1e6;
        println!(
            "{done:>9} {:>9.1} {:>9.1} {:>9.1} {seconds:>9.1}",
            mb(sizes.disk_bytes),
            mb(sizes.object_bytes),
            mb(resident())
        );
    }
    println!("rewritten {rewritten} times, at most {:.1} MB on disk", most as f64 / 1e6);
    Ok(())
}

fn command(number: u64, born: u64, key: &str, value: &Bytes) -> Command {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_le_bytes());
    let put = Mutation::Put { key: key.to_owned(), value: value.clone() };
    Command { id, born, fence: None, txn: Txn { preconditions: vec![], mutations: vec![put] } }
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kilobytes.unwrap_or_default() * 1024
}
