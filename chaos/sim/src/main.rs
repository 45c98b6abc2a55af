//! `ephor-sim`: simulates a whole cluster of masters in one process and one thread, from one seed, and lets
//! `chaos/oracle` judge it. `cargo xtask fuzz` starts it for one seed after the other.
//!
//! | file | does |
//! | --- | --- |
//! | `determinism.rs`, `trace.rs` | make runs of one seed identical, and record a trace to prove it |
//! | `seams/` | processes, sockets, clock, random, network and disk as a master sees them |
//! | `plan.rs` | draws an experiment from the seed, if no file gives one |
//! | `scale.rs` | times that depend on the distance between masters |
//! | `world.rs`, `machine.rs` | the machines, each with its master built as in production |
//! | `worker.rs` | simulated workers |
//! | `workload.rs`, `watcher.rs`, `http.rs` | the clients |
//! | `inject.rs` | injects the faults at their times |
//! | `observer.rs`, `checks/` | record what happens, and check the masters' invariants meanwhile |
//! | `run.rs`, `report.rs` | one run, from boot to verdict, and its report |

mod checks;
mod determinism;
mod http;
mod inject;
mod machine;
mod observer;
mod plan;
mod report;
mod run;
mod scale;
mod seams;
mod trace;
mod watcher;
mod worker;
mod workload;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use chaos_spec::{Experiment, Report, Verdict, report as forms};
use clap::{Parser, ValueEnum};

use crate::plan::Pace;
use crate::run::Options;
use crate::trace::Trace;

/// Runs one simulation and reports its outcome. Exit code: 0 if it passed, 1 if an invariant was violated, 2
/// if the outcome is unknown.
#[derive(Debug, Parser)]
#[command(name = "ephor-sim", version)]
struct Arguments {
    /// Seed that decides everything the experiment leaves open
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run the experiment of this file; by default one is drawn from the seed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["masters", "duration"])]
    experiment: Option<PathBuf>,
    /// Number of masters in a drawn experiment: 1, 3, 5 or 7
    #[arg(long, default_value_t = 3)]
    masters: u32,
    /// Duration of a drawn experiment, in simulated time
    #[arg(long = "for", default_value = "60s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Draw a quiet experiment, for a long `--for`: masters far apart, few calls, faults half a minute apart
    #[arg(long, conflicts_with = "experiment")]
    calm: bool,
    /// Write the experiment to this file before it is run
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Write every log line with its simulated time to this file
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write the history of all operations to this file
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Plant this bug (`chaos/KNOWN_BUGS.md`), to see that the run fails
    #[cfg(feature = "planted")]
    #[arg(long, value_name = "NAME")]
    bug: Option<proto_env::planted::Bug>,
    /// Print the names of all planted bugs, and do nothing else
    #[cfg(feature = "planted")]
    #[arg(long)]
    bugs: bool,
    /// Output format of the report
    #[arg(long, value_enum, default_value_t = Form::Text)]
    output: Form,
}

/// Output formats of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For a terminal
    Text,
    /// A journal like Chaos Toolkit's, on one line, with the hash of the trace
    Json,
    /// For a build server
    Junit,
    /// One page for a browser
    Html,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    determinism::fix_addresses()?;
    #[cfg(feature = "planted")]
    if arguments.bugs {
        proto_env::planted::Bug::ALL.iter().for_each(|bug| println!("{bug}"));
        return Ok(ExitCode::SUCCESS);
    }
    #[cfg(feature = "planted")]
    arguments.bug.into_iter().for_each(proto_env::planted::set);
    let seed = arguments.seed;
    let experiment = experiment(&arguments)?;
    if let Some(path) = &arguments.plan {
        std::fs::write(path, experiment.to_yaml()?).with_context(|| path.display().to_string())?;
    }
    let trace = Trace::begin(arguments.trace.as_deref())?;
    stop_on_panic(seed);
    let options = Options { seed, experiment, history: arguments.history };
    let (report, (hash, lines)) = determinism::tamed(seed, move || {
        let report = run::run(options)?;
        Ok::<_, anyhow::Error>((report, trace.digest()))
    })??;
    let text = match arguments.output {
        Form::Text => format!("{}\ntrace {hash} ({lines} lines)", forms::text(&report)),
        Form::Json => {
            let mut journal = forms::journal(&report)?;
            journal["ephor"]["trace"] = hash.into();
            journal.to_string()
        }
        Form::Junit => forms::junit(&report)?,
        Form::Html => forms::html(&report)?,
    };
    println!("{text}");
    Ok(exit_code(&report))
}

fn exit_code(report: &Report) -> ExitCode {
    match report.verdict {
        Verdict::Pass => ExitCode::SUCCESS,
        Verdict::Fail(_) => ExitCode::from(1),
        Verdict::Unknown(_) => ExitCode::from(2),
    }
}

fn experiment(arguments: &Arguments) -> Result<Experiment> {
    let Some(path) = &arguments.experiment else {
        let pace = if arguments.calm { Pace::Calm } else { Pace::Busy };
        return plan::random(arguments.seed, arguments.masters, arguments.duration, pace);
    };
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Experiment::parse(&text).with_context(|| path.display().to_string())
}

/// Ends the process at a panic in any task; tokio alone would only end that task.
fn stop_on_panic(seed: u64) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        eprintln!("seed {seed}: a panic is a violation");
        std::process::exit(101);
    }));
}
