//! Reads a container's log files for `kubectl logs`: since, tail, timestamps, limit, follow. Rotated files
//! come first; while following, reading continues in the new file after a rotation.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt as _, AsyncSeekExt as _, BufReader};
use tokio::sync::mpsc;

const IDLE: Duration = Duration::from_millis(100);
/// Maximum length of a line; longer lines are cut. Runtimes split lines at 16 KiB, so only a damaged file has
/// longer ones.
const MAX_LINE_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: u64 = 64 << 10;

/// Options of a log request.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Whether to continue until the container ends.
    pub follow: bool,
    /// Number of last lines to read; `None` for all.
    pub tail_lines: Option<u64>,
    /// Time before which lines are left out; `None` for no such bound.
    pub since: Option<Timestamp>,
    /// Whether to put its time before each line.
    pub timestamps: bool,
    /// Maximum number of bytes to send; `None` for no limit.
    pub limit_bytes: Option<u64>,
    /// Stream to read, `Stdout` or `Stderr`; `None` for both.
    pub stream: Option<String>,
}

/// One parsed line of a CRI log file.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    time: &'a str,
    stream: &'a str,
    partial: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tag = parts.next()?;
    Some(Line { time, stream, partial: tag.split(|b| *b == b':').next() == Some(b"P"), text: parts.next()? })
}

/// Lists the files of a log, oldest first: rotated ones (`N.log.TIME`), then `N.log`.
pub fn files(log: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else {
        return Vec::new();
    };
    let prefix = format!("{name}.");
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(|entry| entry.ok());
    let mut files: Vec<PathBuf> = entries
        .filter(|entry| {
            entry.file_name().to_str().is_some_and(|n| n.starts_with(&prefix) && !n.ends_with(".tmp"))
        })
        .map(|entry| entry.path())
        .collect();
    files.sort();
    if log.exists() {
        files.push(log.to_path_buf());
    }
    files
}

/// Returns the text of the last lines of one file, at most `max_bytes` of it, for termination messages;
/// `None` if the file cannot be read.
pub fn tail_text(log: &Path, lines: usize, max_bytes: usize) -> Option<String> {
    let mut file = std::fs::File::open(log).ok()?;
    let start = tail_start(&mut file, lines as u64).ok()?.0;
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut raw = Vec::new();
    file.read_to_end(&mut raw).ok()?;
    let mut text = Vec::new();
    for line in raw.split_inclusive(|b| *b == b'\n') {
        let Some(parsed) = parse(line.strip_suffix(b"\n").unwrap_or(line)) else { continue };
        text.extend_from_slice(parsed.text);
        if !parsed.partial {
            text.push(b'\n');
        }
    }
    let from = text.len().saturating_sub(max_bytes);
    Some(String::from_utf8_lossy(&text[from..]).into_owned())
}

/// Returns the offset at which the last `lines` lines of a file begin, and the number of lines found.
fn tail_start(file: &mut std::fs::File, lines: u64) -> std::io::Result<(u64, u64)> {
    let size = file.metadata()?.len();
    if lines == 0 || size == 0 {
        return Ok((size, 0));
    }
    let mut found = 0;
    let mut end = size;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
        file.seek(SeekFrom::Start(start))?;
        block.resize(usize::try_from(end - start).unwrap_or(0), 0);
        file.read_exact(&mut block)?;
        for (index, byte) in block.iter().enumerate().rev() {
            let position = start + index as u64;
            // The newline that ends the last line starts no other line.
            if *byte == b'\n' && position + 1 < size {
                found += 1;
                if found == lines {
                    return Ok((position + 1, found));
                }
            }
        }
        end = start;
    }
    Ok((0, found + 1))
}

/// Sends the log to `out` in chunks until the log ends or the receiver closes. While following, `ended` is
/// called about once a second and returns whether the container has ended.
pub async fn stream<F, Fut>(log: PathBuf, options: LogOptions, out: mpsc::Sender<Bytes>, ended: F)
where
    F: Fn() -> Fut + Send,
    Fut: Future<Output = bool> + Send,
{
    let mut sink = Sink { left: options.limit_bytes.unwrap_or(u64::MAX), at_line_start: true, options, out };
    let files = files(&log);
    let (first, offset) = start(&files, sink.options.tail_lines);
    let last = files.len().saturating_sub(1);
    for (index, file) in files.iter().enumerate().skip(first) {
        let from = if index == first { offset } else { 0 };
        let Ok(mut reader) = Reader::open(file, from).await else { continue };
        if index < last || !sink.options.follow {
            if !reader.drain(&mut sink).await {
                return;
            }
            continue;
        }
        follow(&log, reader, &mut sink, &ended).await;
    }
}

/// Returns the index of the file and the offset in it at which the requested tail begins.
fn start(files: &[PathBuf], tail: Option<u64>) -> (usize, u64) {
    let Some(mut wanted) = tail else { return (0, 0) };
    for (index, path) in files.iter().enumerate().rev() {
        let Ok((offset, found)) =
            std::fs::File::open(path).and_then(|mut file| tail_start(&mut file, wanted))
        else {
            continue;
        };
        if found >= wanted || index == 0 {
            return (index, offset);
        }
        wanted -= found;
    }
    (0, 0)
}

async fn follow<F, Fut>(log: &Path, mut reader: Reader, sink: &mut Sink, ended: &F)
where
    F: Fn() -> Fut + Send,
    Fut: Future<Output = bool> + Send,
{
    let mut idle: u32 = 0;
    let mut over = false;
    loop {
        let before = reader.offset;
        if !reader.drain(sink).await {
            return;
        }
        if reader.offset > before {
            idle = 0;
        }
        if reader.was_replaced(log).await {
            // Rotated: the old file has been read above, except for lines written since then.
            if !reader.drain(sink).await {
                return;
            }
            match Reader::open(log, 0).await {
                Ok(next) => reader = next,
                Err(_) => tokio::time::sleep(IDLE).await,
            }
            continue;
        }
        if over || sink.out.is_closed() {
            return;
        }
        if idle.is_multiple_of(10) && ended().await {
            // Read once more: lines may have been written between the last read and the container's end.
            over = true;
            continue;
        }
        idle = idle.wrapping_add(1);
        tokio::time::sleep(IDLE).await;
    }
}

struct Reader {
    file: BufReader<tokio::fs::File>,
    inode: u64,
    offset: u64,
    /// An unfinished line at the end of the file.
    pending: Vec<u8>,
}

impl Reader {
    async fn open(path: &Path, offset: u64) -> std::io::Result<Self> {
        let mut file = tokio::fs::File::open(path).await?;
        let inode = file.metadata().await?.ino();
        file.seek(SeekFrom::Start(offset)).await?;
        Ok(Self { file: BufReader::new(file), inode, offset, pending: Vec::new() })
    }

    /// Sends all complete lines. Returns whether the reader should go on.
    async fn drain(&mut self, sink: &mut Sink) -> bool {
        loop {
            let room = MAX_LINE_BYTES.saturating_sub(self.pending.len() as u64).max(1);
            let mut limited = tokio::io::AsyncReadExt::take(&mut self.file, room);
            let Ok(read) = limited.read_until(b'\n', &mut self.pending).await else { return false };
            self.offset += read as u64;
            let complete = self.pending.last() == Some(&b'\n') || self.pending.len() as u64 >= MAX_LINE_BYTES;
            if !complete {
                return true;
            }
            let line = std::mem::take(&mut self.pending);
            if !sink.line(line.strip_suffix(b"\n").unwrap_or(&line)).await {
                return false;
            }
        }
    }

    async fn was_replaced(&self, path: &Path) -> bool {
        match tokio::fs::metadata(path).await {
            Ok(meta) => meta.ino() != self.inode,
            Err(_) => false,
        }
    }
}

struct Sink {
    options: LogOptions,
    left: u64,
    at_line_start: bool,
    out: mpsc::Sender<Bytes>,
}

impl Sink {
    /// Sends one line if the options select it. Returns whether the reader should go on.
    async fn line(&mut self, raw: &[u8]) -> bool {
        let Some(line) = parse(raw) else { return true };
        if let Some(wanted) = &self.options.stream
            && !wanted.eq_ignore_ascii_case(line.stream)
        {
            return true;
        }
        if let Some(since) = self.options.since
            && line.time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return true;
        }
        let mut chunk = Vec::with_capacity(line.text.len() + 40);
        if self.options.timestamps && self.at_line_start {
            chunk.extend_from_slice(line.time.as_bytes());
            chunk.push(b' ');
        }
        chunk.extend_from_slice(line.text);
        if !line.partial {
            chunk.push(b'\n');
        }
        self.at_line_start = !line.partial;
        chunk.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= chunk.len() as u64;
        self.out.send(Bytes::from(chunk)).await.is_ok() && self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn line(second: u32, text: &str) -> String {
        format!("2026-01-01T00:00:{second:02}.000000000Z stdout F {text}\n")
    }

    async fn read(log: &Path, options: LogOptions) -> String {
        let (out, mut chunks) = mpsc::channel(64);
        let reading = tokio::spawn(stream(log.to_path_buf(), options, out, || async { true }));
        let mut text = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            text.extend_from_slice(&chunk);
        }
        reading.await.unwrap();
        String::from_utf8(text).unwrap()
    }

    fn log_with(dir: &Path) -> PathBuf {
        let log = dir.join("0.log");
        std::fs::write(dir.join("0.log.20260101-000000"), line(1, "a") + &line(2, "b")).unwrap();
        let partial = "2026-01-01T00:00:03Z stderr P c".to_owned() + "\n";
        std::fs::write(&log, partial + &line(3, "d") + &line(4, "e")).unwrap();
        log
    }

    #[tokio::test]
    async fn rotated_files_come_first_and_parts_are_joined() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_with(dir.path());
        assert_eq!(read(&log, LogOptions::default()).await, "a\nb\ncd\ne\n");
        let tail = |lines| LogOptions { tail_lines: Some(lines), ..Default::default() };
        assert_eq!(read(&log, tail(1)).await, "e\n");
        assert_eq!(read(&log, tail(4)).await, "b\ncd\ne\n");
        assert_eq!(read(&log, tail(0)).await, "");
        assert_eq!(read(&log, tail(99)).await, "a\nb\ncd\ne\n");
    }

    #[tokio::test]
    async fn since_timestamps_and_limit_shape_the_output() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_with(dir.path());
        let since = Some("2026-01-01T00:00:04Z".parse().unwrap());
        let options = LogOptions { since, timestamps: true, ..Default::default() };
        assert_eq!(read(&log, options).await, "2026-01-01T00:00:04.000000000Z e\n");
        assert_eq!(read(&log, LogOptions { limit_bytes: Some(3), ..Default::default() }).await, "a\nb");
    }

    #[tokio::test]
    async fn following_goes_on_into_the_file_that_rotation_makes_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        std::fs::write(&log, line(1, "one")).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let (out, mut chunks) = mpsc::channel(64);
        let asked = ended.clone();
        let options = LogOptions { follow: true, ..Default::default() };
        let reading = tokio::spawn(stream(log.clone(), options, out, move || {
            let ended = asked.load(Ordering::SeqCst);
            async move { ended }
        }));
        assert_eq!(chunks.recv().await.unwrap(), "one\n");
        std::fs::rename(&log, dir.path().join("0.log.20260101-000000")).unwrap();
        let mut next = std::fs::File::create(&log).unwrap();
        next.write_all(line(2, "two").as_bytes()).unwrap();
        assert_eq!(chunks.recv().await.unwrap(), "two\n");
        ended.store(true, Ordering::SeqCst);
        assert!(chunks.recv().await.is_none());
        reading.await.unwrap();
    }

    #[test]
    fn the_tail_for_messages_is_the_text_alone() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_with(dir.path());
        assert_eq!(tail_text(&log, 2, 100).unwrap(), "d\ne\n");
        assert_eq!(tail_text(&log, 2, 3).unwrap(), "\ne\n");
    }
}
