//! Structured logs through `tracing`: text for people, JSON for machines, to
//! standard error. `EPHOR_LOG` holds the filter directives.

use tracing_subscriber::EnvFilter;

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text for people
    Text,
    /// One JSON object per line
    Json,
}

/// Installs the log subscriber for the rest of the process.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_env("EPHOR_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,openraft=warn,kube=warn,hyper=warn,hickory_server=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
