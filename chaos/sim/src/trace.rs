//! Trace of a run: every log line of every node with its simulated time, as a hash and optionally as a file.
//! Two runs of one seed must have the same trace. `main.rs` installs it; the double run compares the hashes.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::seams::clock;

/// Default log filter of the trace, unless `RUST_LOG` is set. Turmoil's spans name the node.
const FILTER: &str = "info,turmoil=info,h2=off,hyper=off,tower=off,kube=off";

struct Sink {
    hasher: blake3::Hasher,
    lines: u64,
    file: Option<BufWriter<File>>,
}

/// Trace of this process; clones share the data.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<Sink>>);

struct SimulatedTime;

impl FormatTime for SimulatedTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        write!(writer, "{:>12}us", clock::elapsed().as_micros())
    }
}

impl Trace {
    /// Installs the trace for this process.
    ///
    /// # Errors
    /// Fails if the file cannot be created, or if another subscriber is installed already.
    pub fn begin(file: Option<&Path>) -> Result<Self> {
        let file = file.map(|path| File::create(path).with_context(|| path.display().to_string()));
        let file = file.transpose()?.map(BufWriter::new);
        let sink = Sink { hasher: blake3::Hasher::new(), lines: 0, file };
        let trace = Self(Arc::new(Mutex::new(sink)));
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(FILTER));
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_timer(SimulatedTime)
            .with_writer(trace.clone());
        subscriber.try_init().map_err(|error| anyhow::anyhow!("tracing: {error}"))?;
        Ok(trace)
    }

    fn lock(&self) -> MutexGuard<'_, Sink> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the hash and the number of the lines so far.
    pub fn digest(&self) -> (String, u64) {
        let mut sink = self.lock();
        if let Some(file) = &mut sink.file {
            // An error is ignored: only the file is incomplete, the hash is right.
            let _ = file.flush();
        }
        (sink.hasher.finalize().to_hex().to_string(), sink.lines)
    }
}

impl Write for Trace {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut sink = self.lock();
        sink.hasher.update(bytes);
        sink.lines += 1;
        if let Some(file) = &mut sink.file {
            file.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Trace {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
