//! Resource usage of processes and directories, from `/proc` and the file system.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// Unit of processor time in `/proc/PID/stat` (`USER_HZ`, 100 on every machine).
const TICK: Duration = Duration::from_millis(10);
const BLOCK_BYTES: u64 = 512;

/// Resident memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// All resident memory (`VmRSS`).
    pub all: u64,
    /// Resident memory without file pages (`RssAnon`), which the kernel cannot drop.
    pub anonymous: u64,
}

/// Returns the resident memory of a process.
pub fn resident(pid: u32) -> Result<Resident> {
    parse_status(&fs::read_to_string(format!("/proc/{pid}/status"))?)
}

/// Returns the processor time that all threads of a process have used.
pub fn processor_time(pid: u32) -> Result<Duration> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
}

/// Returns the bytes of disk that all files below `directory` take. Files that vanish
/// meanwhile are not counted.
pub fn disk(directory: &Path) -> Result<u64> {
    let Some(entries) = unless_gone(fs::read_dir(directory))? else { return Ok(0) };
    let mut bytes = 0;
    for entry in entries {
        let Some(entry) = unless_gone(entry)? else { continue };
        let Some(metadata) = unless_gone(entry.metadata())? else { continue };
        bytes += metadata.blocks() * BLOCK_BYTES;
        if metadata.is_dir() {
            bytes += disk(&entry.path())?;
        }
    }
    Ok(bytes)
}

fn unless_gone<T>(result: std::io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn parse_status(status: &str) -> Result<Resident> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let line = line.with_context(|| format!("no {name} in the status of a process"))?;
        let kib = line.trim().trim_end_matches("kB").trim();
        anyhow::Ok(kib.parse::<u64>().with_context(|| format!("{name}{line}"))? * 1024)
    };
    Ok(Resident { all: field("VmRSS:")?, anonymous: field("RssAnon:")? })
}

fn parse_stat(stat: &str) -> Result<Duration> {
    // The program's name, in parentheses, may contain any character.
    let (_, fields) = stat.rsplit_once(") ").context("an odd stat of a process")?;
    let ticks = |position: usize| -> Result<u32> {
        Ok(fields.split(' ').nth(position).context("a short stat of a process")?.parse()?)
    };
    // utime and stime are fields 14 and 15; pid and name, fields 1 and 2, are cut off.
    Ok(TICK * (ticks(11)? + ticks(12)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_right() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 88 0 0 0 123 45 0 0 20 0 1 0 5 1 1";
        assert_eq!(parse_stat(stat).unwrap(), Duration::from_millis(1680));
        let status = "Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t     1024 kB\n";
        assert_eq!(parse_status(status).unwrap(), Resident { all: 2 << 20, anonymous: 1 << 20 });
        assert!(parse_status("Name:\tx\n").is_err());
    }

    #[test]
    fn a_directory_takes_what_its_files_take() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let before = disk(directory.path()).unwrap();
        fs::write(inner.join("file"), vec![1; 1 << 20]).unwrap();
        fs::File::open(inner.join("file")).unwrap().sync_all().unwrap();
        let grown = disk(directory.path()).unwrap() - before;
        assert!((1 << 20..2 << 20).contains(&grown), "{grown}");
        assert_eq!(disk(&directory.path().join("gone")).unwrap(), 0);
    }
}
