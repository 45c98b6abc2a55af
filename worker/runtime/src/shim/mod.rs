//! The shim: processes outside of the worker's, started as `EXE shim VERB ...`.
//!
//! - `spawn` starts a pod's daemon detached from the worker and ends, so that the daemon does not depend on
//!   the process that started it.
//! - `daemon` is the pod's one long-lived process: it is the parent of the pod's containers, copies their
//!   output, records their end, and answers the runtime on a unix socket.
//! - `launch` and `exec` start one process through `libcontainer`, which forks and therefore needs a
//!   process with a single thread, and end.
//! - `hold` and `init` are the first process of a PID namespace that a pod's containers share.

/// Writes a line to the shim's log, and ignores errors: a full disk must not end the shim, as
/// `eprintln!` would by panicking.
macro_rules! say {
    ($($text:tt)*) => { $crate::shim::say(format_args!($($text)*)) };
}

pub(crate) mod client;
mod containers;
mod daemon;
mod device_filter;
mod exec_attach;
mod exec_launcher;
mod executor;
mod holder;
mod launch;
mod log;
pub(crate) mod plan;
pub(crate) mod protocol;
mod reaper;
pub(crate) mod rootfs;
pub(crate) mod seccomp;
mod stdio;
mod user;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs `shim VERB DIRECTORY [ARGUMENTS]`; takes the arguments after `shim`.
///
/// The caller must not have started a thread or a tokio runtime, because `launch` and `exec`
/// fork. Writes errors to standard error, which the daemon's starter has redirected to a log
/// file, and returns exit code 1.
pub fn shim_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let verb = arguments.next().unwrap_or_default();
    let directory = PathBuf::from(arguments.next().unwrap_or_default());
    let rest: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    if !directory.is_absolute() {
        eprintln!("ephor shim is run by the worker, as: shim VERB DIRECTORY");
        return ExitCode::FAILURE;
    }
    let outcome = match verb.to_str() {
        Some("spawn") => daemon::spawn(&directory),
        Some("daemon") => daemon::run(&directory),
        Some("launch") => launch::run(&directory),
        Some("exec") => exec_launcher::run(&directory, &rest),
        Some("hold") => holder::hold(&directory),
        Some("init") => holder::init(),
        _ => Err(ShimError::Verb(verb.to_string_lossy().into_owned())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("{}", crate::files::chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Implements the macro of the same name.
fn say(text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    // An error here cannot be reported anywhere else.
    let _ = writeln!(std::io::stderr(), "shim: {text}");
}

/// Why a shim process failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    #[error("unknown verb \"{0}\"")]
    Verb(String),
    #[error("{what}")]
    Io { what: String, source: std::io::Error },
    #[error("{0}")]
    Container(String),
}

impl ShimError {
    /// Returns a closure for `map_err` that describes an I/O or kernel error while doing `what`.
    pub fn io<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source: source.into() }
    }
}
