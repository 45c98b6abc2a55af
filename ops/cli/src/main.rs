//! The binary `ephor`: parses the command line and calls one file per command. Decides
//! only which async runtime a command runs in: the shim and the namespace commands
//! must start before there is any thread.

mod admin;
mod commands;
mod config_file;
mod dev;
mod free_space;
mod kubeconfig;
mod logging;
mod memory;
mod progress;
mod signals;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

/// A highly available container orchestrator that speaks the Kubernetes API.
#[derive(Debug, Parser)]
#[command(name = "ephor", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a master: object store, API server, scheduler and controllers
    Master(Box<commands::master::MasterArgs>),
    /// Run a worker: containers, volumes and pod network
    Worker(Box<commands::worker::WorkerArgs>),
    Dev(dev::DevArgs),
    Members(commands::members::MembersArgs),
    Token(commands::token::TokenArgs),
    Status(commands::status::StatusArgs),
    Recover(commands::recover::RecoverArgs),
    Kubeconfig(commands::kubeconfig::KubeconfigArgs),
    Image(commands::image::ImageArgs),
    Backup(commands::backup::BackupArgs),
    Reset(commands::reset::ResetArgs),
    Chaos(commands::chaos::ChaosArgs),
    /// Print the version
    Version,
    /// Print a completion script for a shell
    Completions {
        /// Name of the shell
        shell: clap_complete::Shell,
    },
    /// Run the containers of one pod (started by the runtime)
    #[command(hide = true, disable_help_flag = true)]
    Shim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Attach a pod to the network as a CNI plugin (started by another runtime)
    #[command(hide = true)]
    Cni,
}

fn main() -> ExitCode {
    // Installs one crypto library for all of TLS, for libraries that use the process default.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("error: another crypto provider is installed");
        return ExitCode::FAILURE;
    }
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            // One line: the chain of causes, the root cause last.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Shim { arguments } => return Ok(worker_runtime::shim_main(arguments)),
        Command::Cni => return Ok(ExitCode::from(u8::try_from(worker_network::cni_main()).unwrap_or(1))),
        Command::Chaos(arguments) => return commands::chaos::run(arguments),
        Command::Dev(arguments) => dev::run(arguments)?,
        Command::Master(arguments) => in_runtime(commands::master::run(*arguments))?,
        Command::Worker(arguments) => in_runtime(commands::worker::run(*arguments))?,
        Command::Members(arguments) => in_runtime(commands::members::run(arguments))?,
        Command::Token(arguments) => in_runtime(commands::token::run(arguments))?,
        Command::Status(arguments) => in_runtime(commands::status::run(arguments))?,
        Command::Recover(arguments) => in_runtime(commands::recover::run(arguments))?,
        Command::Kubeconfig(arguments) => commands::kubeconfig::run(&arguments)?,
        Command::Image(arguments) => in_runtime(commands::image::run(arguments))?,
        Command::Backup(arguments) => in_runtime(commands::backup::run(arguments))?,
        Command::Reset(arguments) => in_runtime(commands::reset::run(arguments))?,
        Command::Version => println!("ephor {}", env!("CARGO_PKG_VERSION")),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "ephor", &mut std::io::stdout());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn in_runtime(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // Blocking work for a peer that is gone must not delay the end of the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
