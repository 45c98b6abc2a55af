//! Container logs in the CRI format: each line of text becomes `TIME stdout|stderr P|F TEXT`. A line longer
//! than 16 KiB, or one without a line end, is written in partial pieces (P).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Maximum number of bytes of text in one line of the log file.
const PIECE: usize = 16 << 10;

/// Standard output or standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputStream {
    Stdout,
    Stderr,
}

impl OutputStream {
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
    open: Arc<Mutex<Open>>,
}

/// The open file and the result of the last write.
#[derive(Default)]
struct Open {
    file: Option<File>,
    /// Whether the last write failed; the error is reported only the first time.
    failing: bool,
    /// Whether the file ends in the middle of a line, because only a part of the line could be written.
    torn: bool,
}

impl LogFile {
    pub fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let log = Self { path, open: Arc::default() };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the log by its path again, after the kubelet has rotated (renamed) it.
    pub fn reopen(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) =
            Open { file: Some(file), ..Open::default() };
        Ok(())
    }

    /// Appends whole lines. Discards what cannot be written: a full disk must not stop the container.
    fn write(&self, lines: &[u8]) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Open { file: Some(file), failing, torn } = &mut *open else { return };
        match append(file, lines, torn) {
            Ok(()) => *failing = false,
            Err(error) if !*failing => {
                say!("write container log: {error}");
                *failing = true;
            }
            Err(_) => {}
        }
    }
}

/// Writes `lines`, after ending an earlier line that was written only in part. Sets `torn` to whether the
/// file now ends in the middle of a line.
fn append(file: &mut File, lines: &[u8], torn: &mut bool) -> io::Result<()> {
    if *torn {
        file.write_all(b"\n")?;
        *torn = false;
    }
    let mut rest = lines;
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                *torn = rest[count - 1] != b'\n';
                rest = &rest[count..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Splits one output stream into lines and logs them.
pub(crate) struct LineWriter {
    log: LogFile,
    stream: OutputStream,
    pending: Vec<u8>,
}

impl LineWriter {
    pub fn new(log: LogFile, stream: OutputStream) -> Self {
        Self { log, stream, pending: Vec::new() }
    }

    /// Logs the lines that `bytes` completes, and keeps the text after the last line end.
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

    /// Logs a last line that has no line end.
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
            LineWriter::new(LogFile::open(Some(path.clone())).expect("open log"), OutputStream::Stdout);
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

    /// Runs in a process of its own, because that process's standard error is full too.
    #[test]
    fn a_full_disk_loses_the_log_but_not_the_container() {
        const CHILD: &str = "EPHOR_TEST_FULL_DISK";
        if std::env::var_os(CHILD).is_some() {
            let log = LogFile::open(Some("/dev/full".into())).expect("open");
            let mut writer = LineWriter::new(log, OutputStream::Stdout);
            for _ in 0..100 {
                writer.push(b"lost\n");
            }
            return;
        }
        let name = "shim::log::tests::a_full_disk_loses_the_log_but_not_the_container";
        let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", name, "--nocapture"]).env(CHILD, "1");
        let full = OpenOptions::new().write(true).open("/dev/full").expect("open /dev/full");
        let status = command.stderr(full).stdout(std::process::Stdio::null()).status().expect("run");
        assert!(status.success(), "the writer of the log was killed: {status}");
    }

    #[test]
    fn after_a_torn_line_the_next_one_begins_anew() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("0.log");
        let mut file = File::create(&path).expect("create");
        let mut torn = false;
        append(&mut file, b"half a li", &mut torn).expect("write");
        assert!(torn);
        append(&mut file, b"whole\n", &mut torn).expect("write");
        assert!(!torn);
        assert_eq!(std::fs::read_to_string(path).expect("read"), "half a li\nwhole\n");
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
