//! `ephor-sim`: a whole cluster of masters in one process, one thread and one
//! seed, judged by `chaos/oracle`. `cargo xtask fuzz` starts it for one seed after the other.
//!
//! | file | does |
//! | --- | --- |
//! | `determinism.rs`, `trace.rs` | the same seed, the same run, and the proof of it |
//! | `seams/` | processes, sockets, clock, random, network and disk as a master sees them |
//! | `plan.rs` | an experiment drawn from the seed, where no file gives one |
//! | `scale.rs` | how far apart the masters are, and what follows |
//! | `world.rs`, `machine.rs` | the machines, each with its master built as in production |
//! | `worker.rs` | simulated workers |
//! | `workload.rs`, `watcher.rs`, `http.rs` | the clients |
//! | `inject.rs` | what goes wrong, when it is time |
//! | `observer.rs`, `checks/` | what is seen, and what must hold of the masters meanwhile |
//! | `run.rs`, `report.rs` | one run, from boot to verdict, and what is said of it |

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

/// Runs one simulation and says what came of it: ends with 0 where it passed,
/// with 1 where something that must hold did not, with 2 where nobody knows.
#[derive(Debug, Parser)]
#[command(name = "ephor-sim", version)]
struct Arguments {
    /// Decides everything that the experiment leaves open
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run this experiment; without, one is drawn from the seed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["masters", "duration"])]
    experiment: Option<PathBuf>,
    /// Masters of a drawn experiment: 1, 3, 5 or 7
    #[arg(long, default_value_t = 3)]
    masters: u32,
    /// How long things go wrong in a drawn experiment, in simulated time
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
    /// How the report looks
    #[arg(long, value_enum, default_value_t = Form::Text)]
    output: Form,
}

/// The forms of a report.
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

/// A panic anywhere ends the run: tokio would only end the task it was in.
fn stop_on_panic(seed: u64) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        eprintln!("seed {seed}: a panic is a violation");
        std::process::exit(101);
    }));
}
