//! `ephor chaos run`: runs one experiment file, in the simulation or on a live cluster.
//! The simulation is a separate program, so that this one does not link it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use chaos_live::access::Access;
use chaos_live::run::{Options, run as run_live};
use chaos_spec::{Experiment, Report, Verdict, report as forms};
use clap::{Args, ValueEnum};
use tokio_util::sync::CancellationToken;

use super::AgentPlaces;

/// Exit code when the experiment could not judge the cluster.
const UNKNOWN: u8 = 2;

/// Run an experiment; exit with 0 if it passed, 1 if it failed, 2 if the result is unknown
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Path of the experiment file; chaos/experiments has examples
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Seed of all random choices of the experiment [default: random, printed in the report]
    #[arg(long)]
    seed: Option<u64>,
    /// Format of the report
    #[arg(long, value_enum, default_value_t = Form::Text)]
    output: Form,
    /// File to which the history of all operations is written
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Path of the simulation's program [default: ephor-sim beside this program]
    #[arg(long, value_name = "FILE", env = "EPHOR_SIM")]
    sim_bin: Option<PathBuf>,
    /// Path of the kubeconfig [default: $KUBECONFIG, or the one of this machine]
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// The peer address (HOST:PORT) of a master [default: found through the API]
    #[arg(long)]
    address: Option<String>,
    #[command(flatten)]
    agents: AgentPlaces,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// Run in the simulation, on a simulated clock
    #[arg(long)]
    sim: bool,
    /// Run on the cluster of the kubeconfig, whose nodes run `ephor chaos agent`
    #[arg(long)]
    live: bool,
}

/// The forms of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Text for a terminal
    Text,
    /// JSON journal like Chaos Toolkit's
    Json,
    /// JUnit XML for CI servers
    Junit,
    /// One HTML page
    Html,
}

/// Runs `ephor chaos run`.
pub fn run(arguments: RunArgs) -> Result<ExitCode> {
    if arguments.place.sim {
        return simulate(&arguments);
    }
    let report = live(&arguments);
    match report {
        Ok(code) => Ok(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            Ok(ExitCode::from(UNKNOWN))
        }
    }
}

fn simulate(arguments: &RunArgs) -> Result<ExitCode> {
    let beside = || Ok::<_, std::io::Error>(std::env::current_exe()?.with_file_name("ephor-sim"));
    let program = arguments.sim_bin.clone().map_or_else(beside, Ok)?;
    let form =
        arguments.output.to_possible_value().map(|form| form.get_name().to_owned()).unwrap_or_default();
    let mut command = Command::new(&program);
    command.arg("--experiment").arg(&arguments.file).args(["--output", &form]);
    if let Some(seed) = arguments.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    if let Some(history) = &arguments.history {
        command.args([OsString::from("--history"), history.into()]);
    }
    let status = command.status().with_context(|| {
        format!(
            "starting {} (build it with `cargo build -p chaos-sim`, or give --sim-bin)",
            program.display()
        )
    })?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(101)))
}

fn live(arguments: &RunArgs) -> Result<ExitCode> {
    let experiment = read(&arguments.file)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (report, history) = runtime.block_on(async {
        let kubeconfig = super::kubeconfig(arguments.kubeconfig.clone());
        let peers = match &arguments.address {
            Some(address) => vec![address.clone()],
            None => crate::admin::masters(&crate::kubeconfig::client(&kubeconfig, None).await?).await?,
        };
        let stop = CancellationToken::new();
        crate::signals::cancel_on_termination(stop.clone())?;
        let begun = Instant::now();
        let progress = move |line: &str| eprintln!("{:7.2}s  {line}", begun.elapsed().as_secs_f64());
        let options = Options {
            experiment,
            seed: arguments.seed.unwrap_or_else(|| u64::from(rand::random::<u32>())),
            peers,
            agent_port: arguments.agents.agent_port,
            agents: arguments.agents.all(&kubeconfig)?,
            progress: Arc::new(progress),
        };
        let access = Access::new(&crate::kubeconfig::material(&kubeconfig)?)?;
        anyhow::Ok(run_live(options, access, stop).await?)
    })?;
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    if let Some(path) = &arguments.history {
        std::fs::write(path, serde_json::to_vec_pretty(&history)?)
            .with_context(|| path.display().to_string())?;
    }
    println!("{}", render(arguments.output, &report)?);
    Ok(match report.verdict {
        Verdict::Pass => ExitCode::SUCCESS,
        Verdict::Fail(_) => ExitCode::FAILURE,
        Verdict::Unknown(_) => ExitCode::from(UNKNOWN),
    })
}

fn read(path: &Path) -> Result<Experiment> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Experiment::parse(&text).with_context(|| path.display().to_string())
}

fn render(form: Form, report: &Report) -> Result<String> {
    Ok(match form {
        Form::Text => forms::text(report),
        Form::Json => forms::journal(report)?.to_string(),
        Form::Junit => forms::junit(report)?,
        Form::Html => forms::html(report)?,
    })
}
