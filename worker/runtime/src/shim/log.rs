//! Container logs in the CRI format: `TIME stdout|stderr P|F TEXT`, a line of text a line.
//! A line longer than 16 KiB, or one without an end, is written in partial pieces (P).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// The longest piece of a line, in bytes.
const PIECE: usize = 16 << 10;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A container's log file, shared by its streams. Without a path nothing is written.
#[derive(Clone)]
pub(crate) struct LogFile {
    path: Option<PathBuf>,
    file: Arc<Mutex<Option<File>>>,
}

impl LogFile {
    pub fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let log = Self { path, file: Arc::new(Mutex::new(None)) };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the log by its path again: the way the kubelet rotates.
    pub fn reopen(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }

    fn write(&self, bytes: &[u8]) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk must not stop the container: the output is lost, the shim's log says so.
        if let Some(file) = file.as_mut()
            && let Err(error) = file.write_all(bytes)
        {
            eprintln!("shim: write container log: {error}");
        }
    }
}

/// Cuts one stream's output into lines and logs them.
pub(crate) struct LineWriter {
    log: LogFile,
    stream: Stream,
    pending: Vec<u8>,
}

impl LineWriter {
    pub fn new(log: LogFile, stream: Stream) -> Self {
        Self { log, stream, pending: Vec::new() }
    }

    /// Logs what is complete in `bytes` together with what came before.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.log.path.is_none() {
            return;
        }
        let prefix = self.prefix();
        let mut out = Vec::with_capacity(bytes.len() + 64);
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            let (text, complete) = match part.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (part, false),
            };
            self.pending.extend_from_slice(text);
            while self.pending.len() > PIECE {
                let rest = self.pending.split_off(PIECE);
                line(&mut out, &prefix, b'P', &self.pending);
                self.pending = rest;
            }
            if complete {
                line(&mut out, &prefix, b'F', &self.pending);
                self.pending.clear();
            }
        }
        if !out.is_empty() {
            self.log.write(&out);
        }
    }

    /// Logs a last line without an end.
    pub fn finish(&mut self) {
        if !self.pending.is_empty() && self.log.path.is_some() {
            let mut out = Vec::new();
            line(&mut out, &self.prefix(), b'P', &self.pending);
            self.pending.clear();
            self.log.write(&out);
        }
    }

    fn prefix(&self) -> String {
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.9fZ");
        format!("{time} {} ", self.stream.name())
    }
}

fn line(out: &mut Vec<u8>, prefix: &str, tag: u8, text: &[u8]) {
    out.extend_from_slice(prefix.as_bytes());
    out.extend_from_slice(&[tag, b' ']);
    out.extend_from_slice(text);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(chunks: &[&[u8]]) -> Vec<String> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("a/0.log");
        let mut writer =
            LineWriter::new(LogFile::open(Some(path.clone())).expect("open log"), Stream::Stdout);
        for chunk in chunks {
            writer.push(chunk);
        }
        writer.finish();
        std::fs::read_to_string(path).expect("read log").lines().map(|l| l[31..].to_owned()).collect()
    }

    #[test]
    fn lines_are_joined_over_reads_and_an_open_end_is_partial() {
        assert_eq!(
            logged(&[b"one\ntw", b"o\n\nend"]),
            ["stdout F one", "stdout F two", "stdout F ", "stdout P end"]
        );
    }

    #[test]
    fn a_long_line_is_cut_into_partial_pieces() {
        let mut text = vec![b'x'; PIECE + 5];
        text.push(b'\n');
        let lines = logged(&[&text]);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), "stdout P ".len() + PIECE);
        assert_eq!(lines[1], "stdout F xxxxx");
    }
}
