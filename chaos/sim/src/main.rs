//! `ephor-sim`: a whole cluster of masters in one process, one thread and one
//! seed. `cargo xtask fuzz` starts it for one seed after the other.
//!
//! | file | does |
//! | --- | --- |
//! | `determinism.rs`, `trace.rs` | the same seed, the same run, and the proof of it |
//! | `seams/` | clock, random, network and disk as a master sees them |
//! | `machine.rs` | one machine and its master, built as in production |
//! | `workload.rs`, `watcher.rs`, `http.rs` | the clients |
//! | `faults.rs` | what goes wrong, and when |
//! | `observer.rs`, `history.rs` | what is seen |
//! | `oracle/` | what must hold, one check a file |
//! | `run.rs` | one run, from boot to verdict |

mod determinism;
mod faults;
mod history;
mod http;
mod machine;
mod observer;
mod oracle;
mod run;
mod seams;
mod trace;
mod watcher;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use crate::run::{Options, Report};
use crate::trace::Trace;

/// Runs one simulation and says what came of it; ends with 1 where something
/// that must hold did not.
#[derive(Debug, Parser)]
#[command(name = "ephor-sim", version)]
struct Arguments {
    /// Decides everything that happens
    #[arg(long)]
    seed: u64,
    /// Masters: 1, 3, 5 or 7
    #[arg(long, default_value_t = 3)]
    masters: usize,
    /// How long things go wrong, in simulated time
    #[arg(long = "for", default_value = "60s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Clients that read and write
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// Clients that watch
    #[arg(long, default_value_t = 2)]
    watchers: usize,
    /// Objects they work on
    #[arg(long, default_value_t = 6)]
    keys: usize,
    /// Write every log line with its simulated time to this file
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write the history of all operations to this file
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Print the report as one line of JSON
    #[arg(long)]
    json: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    anyhow::ensure!(
        matches!(arguments.masters, 1 | 3 | 5 | 7),
        "{} masters asked for: it must be 1, 3, 5 or 7",
        arguments.masters
    );
    determinism::fix_addresses()?;
    let trace = Trace::begin(arguments.trace.as_deref())?;
    stop_on_panic(arguments.seed);
    let options = Options {
        seed: arguments.seed,
        masters: arguments.masters,
        clients: arguments.clients,
        watchers: arguments.watchers,
        keys: arguments.keys,
        chaos: arguments.duration,
        history: arguments.history,
    };
    let report = determinism::tamed(arguments.seed, move || {
        let mut report = run::run(options)?;
        (report.trace, report.lines) = trace.digest();
        Ok::<_, anyhow::Error>(report)
    })??;
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A panic anywhere ends the run: tokio would only end the task it was in.
fn stop_on_panic(seed: u64) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        eprintln!("seed {seed}: a panic is a violation");
        std::process::exit(101);
    }));
}

fn print(report: &Report) {
    println!("seed {} with {} masters: {} ms simulated", report.seed, report.masters, report.simulated_ms);
    println!("faults       {:?}", report.faults);
    println!("elections    {}", report.elections);
    println!("operations   {:?}, {} changes, {} watched", report.operations, report.changes, report.watched);
    println!("heal         {:?} ms", report.heal_ms);
    println!("trace        {} in {} lines", report.trace, report.lines);
    for violation in &report.violations {
        println!("VIOLATION    {violation}");
    }
    println!("verdict      {}", if report.violations.is_empty() { "pass" } else { "fail" });
}
