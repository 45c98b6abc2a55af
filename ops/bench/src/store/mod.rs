//! Compares the replicated store with etcd: three Ephor stores and three etcd members,
//! each in a process of its own, TLS between all, data on the same disk, driven by the
//! same client through the same gRPC calls. Each line is measured on a fresh group of
//! one side and then of the other, so that neither takes the other's processor time
//! and both see the machine in the same state.

mod disk;
mod failover;
mod floor;
mod group;
mod load;
mod memory;
mod processes;
mod reads;
mod restart;
mod table;
mod watch;
mod writes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proto_env::{Network, TlsNetwork};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::pki;
use group::Group;
use table::{Line, Table};

/// Arguments of `ephor-bench store`: lines to measure, and their sizes.
#[derive(clap::Args)]
pub struct Arguments {
    /// Path of the etcd binary [default: Ephor is measured alone]
    #[arg(long, env = "ETCD_BIN")]
    etcd: Option<PathBuf>,
    /// Directory of the data of both sides, on one disk.
    #[arg(long, default_value = "/var/tmp")]
    directory: PathBuf,
    /// Lines of the table to measure [default: all]
    #[arg(long, value_delimiter = ',', value_enum, value_name = "LINE,...")]
    only: Vec<Step>,
    /// Duration of each line of writes, reads and watches, in seconds.
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Size of a value in bytes.
    #[arg(long, default_value = "1024", value_parser = clap::value_parser!(u32).range(8..1_000_000))]
    value_bytes: u32,
    /// Number of watchers of the fan-out.
    #[arg(long, default_value = "1000", value_parser = clap::value_parser!(u32).range(1..20_000))]
    watchers: u32,
    /// Number of kills of the leader; `RESULTS.md` uses 100.
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u32).range(1..10_000))]
    kills: u32,
    /// Number of restarts, of a follower and of all members.
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u32).range(1..1_000))]
    restarts: u32,
    /// Number of objects for the lines of memory and restart.
    #[arg(long, default_value = "100000", value_parser = clap::value_parser!(u64).range(1..10_000_000))]
    objects: u64,
    /// Number of updates for the line of the disk; `RESULTS.md` uses 1,000,000.
    #[arg(long, default_value = "100000", value_parser = clap::value_parser!(u64).range(20..100_000_000))]
    updates: u64,
    /// Factor by which Ephor's timers of production (heartbeat 50 ms, election 100 to
    /// 250 ms) are multiplied; etcd keeps its own (100 ms, 1 s).
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..100))]
    timers: u32,
    /// Longest time for one line of one side, in seconds, before the line counts as failed.
    #[arg(long, default_value = "1800", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
}

/// A part of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// Time of the disk and the transport alone: lower bounds for any store.
    Floor,
    /// Durable writes.
    Writes,
    /// Linearizable reads.
    Reads,
    /// Watch fan-out.
    Watch,
    /// kill -9 of the leader.
    Failover,
    /// Resident memory.
    Memory,
    /// Restart with many objects.
    Restart,
    /// Disk after many updates.
    Disk,
}

/// The system that a group's members belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Ephor's store.
    Ephor,
    /// etcd, which Ephor is compared with.
    Etcd,
}

/// Settings that every measurement needs.
pub struct Setup {
    etcd: Option<PathBuf>,
    directory: TempDir,
    network: Arc<dyn Network>,
    span: Duration,
    limit: Duration,
    value_bytes: usize,
    watchers: usize,
    kills: usize,
    restarts: usize,
    objects: u64,
    updates: u64,
    timers: u32,
}

impl Side {
    /// Name of the side in log lines and directory names.
    fn name(self) -> &'static str {
        match self {
            Self::Ephor => "ephor",
            Self::Etcd => "etcd",
        }
    }
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Floor,
        Self::Writes,
        Self::Reads,
        Self::Watch,
        Self::Failover,
        Self::Memory,
        Self::Restart,
        Self::Disk,
    ];
}

/// Measures and prints the table. Fails at the end when any line failed; a
/// signal ends the run early and kills the members.
pub async fn run(arguments: Arguments) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
        done = all(arguments) => done,
    }
}

async fn all(arguments: Arguments) -> Result<()> {
    let asked = |step: &Step| arguments.only.is_empty() || arguments.only.contains(step);
    let steps: Vec<Step> = Step::ALL.into_iter().filter(asked).collect();
    let setup = setup(arguments)?;
    let sides = if setup.etcd.is_some() { vec![Side::Ephor, Side::Etcd] } else { vec![Side::Ephor] };
    // The restart measurement needs the objects that the memory measurement writes, so they share a group.
    let both = steps.contains(&Step::Memory) && steps.contains(&Step::Restart);
    let mut table = Table::default();
    let mut failed = false;
    for step in steps.into_iter().filter(|step| !both || *step != Step::Restart) {
        for side in &sides {
            let lines = tokio::time::timeout(setup.limit, measure(&setup, *side, step, both));
            let lines = lines.await.unwrap_or_else(|_| Err(anyhow::anyhow!("not within {:?}", setup.limit)));
            let lines = lines.map_err(|error| {
                eprintln!("{:<5} {step:?} failed: {error:#}", side.name());
                failed = true;
                format!("{error:#}")
            });
            table.enter(*side, &format!("{step:?}").to_lowercase(), lines);
        }
    }
    println!("\n{}\n{}", describe(&setup), table.markdown());
    ensure!(!failed, "not all lines could be measured");
    Ok(())
}

fn setup(arguments: Arguments) -> Result<Setup> {
    if let Some(etcd) = &arguments.etcd {
        ensure!(etcd.is_file(), "{} is not there: --etcd names the binary", etcd.display());
    }
    let directory = tempfile::Builder::new().prefix("ephor-bench-").tempdir_in(&arguments.directory);
    let directory =
        directory.with_context(|| format!("making a directory in {}", arguments.directory.display()))?;
    pki::make(directory.path())?;
    let network: Arc<dyn Network> = Arc::new(TlsNetwork::new(&pki::load(directory.path())?)?);
    Ok(Setup {
        etcd: arguments.etcd,
        directory,
        network,
        span: Duration::from_secs(arguments.seconds),
        limit: Duration::from_secs(arguments.limit),
        value_bytes: usize::try_from(arguments.value_bytes)?,
        watchers: usize::try_from(arguments.watchers)?,
        kills: usize::try_from(arguments.kills)?,
        restarts: usize::try_from(arguments.restarts)?,
        objects: arguments.objects,
        updates: arguments.updates,
        timers: arguments.timers,
    })
}

async fn measure(setup: &Setup, side: Side, step: Step, with_restart: bool) -> Result<Vec<Line>> {
    if step == Step::Disk {
        return disk::measure(setup, side).await;
    }
    let mut group = Group::start(setup, side).await?;
    let lines = match step {
        Step::Floor => floor::measure(&group, setup).await,
        Step::Writes => writes::measure(&group, setup).await,
        Step::Reads => reads::measure(&group, setup).await,
        Step::Watch => watch::measure(&group, setup).await,
        Step::Failover => failover::measure(&mut group, setup).await,
        Step::Memory | Step::Restart => filled(&mut group, setup, step, with_restart).await,
        Step::Disk => Ok(Vec::new()),
    };
    let lines = lines.map_err(|error| anyhow::anyhow!("{error:#}{}", group.last_words()));
    group.end().await?;
    lines
}

async fn filled(group: &mut Group, setup: &Setup, step: Step, with_restart: bool) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    if step == Step::Memory {
        lines = memory::measure(group, setup).await?;
    } else {
        memory::fill(group, setup).await?;
    }
    if step == Step::Restart || with_restart {
        lines.extend(restart::measure(group, setup).await?);
    }
    Ok(lines)
}

/// Describes the machine and the settings, for the text above the table.
fn describe(setup: &Setup) -> String {
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let build =
        if cfg!(debug_assertions) { "debug build, no figures for the record" } else { "release build" };
    let timers = match setup.timers {
        1 => "those of production".to_owned(),
        times => format!("{times} times those of production"),
    };
    format!(
        "Values of {} bytes; {processors} processors, load {}, {build}. Timers: Ephor's {timers}, etcd's its \
         defaults. CPU: processor time of all three members for one operation. The floor: fdatasync of 1 KiB and a \
         TCP round trip of 1 KiB over loopback, measured right before and after.\n",
        setup.value_bytes,
        load.split(' ').next().unwrap_or_default(),
    )
}
