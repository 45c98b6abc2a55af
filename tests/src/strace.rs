//! File operations of processes, recorded by strace: attaches to running masters and parses its output into
//! events in order of time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::eventually_within;

/// Traced system calls: those that change files or make them durable.
const CALLS: &str =
    "write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat";
const ATTACH_WITHIN: Duration = Duration::from_secs(20);
const DETACH_WITHIN: Duration = Duration::from_secs(20);

/// A system call that succeeded. Times are microseconds since the Unix epoch, as from [`now`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Time at which the call was entered.
    pub start: u64,
    /// Time at which the call returned.
    pub end: u64,
    /// Name of the call.
    pub call: String,
    /// Path of the file; for a rename, the new path.
    pub path: String,
}

/// strace attached to a process.
pub struct Strace {
    child: Child,
    output: PathBuf,
}

/// Returns the current time in microseconds since the Unix epoch.
pub fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

impl Event {
    /// Returns whether the call made a file or directory durable.
    pub fn is_sync(&self) -> bool {
        matches!(self.call.as_str(), "fsync" | "fdatasync")
    }

    /// Returns whether the call wrote to a file.
    pub fn is_write(&self) -> bool {
        self.call.contains("write")
    }
}

impl Strace {
    /// Attaches to a process. With `inject`, such as `fdatasync:retval=0`, the named calls are not carried
    /// out but return success; they are not recorded as events.
    pub async fn attach(pid: u32, output: &Path, inject: Option<&str>) -> Result<Self> {
        let mut command = Command::new("strace");
        command.args(["-f", "-q", "-ttt", "-T", "-y", "-s", "0", "-e", &format!("trace={CALLS}")]);
        if let Some(inject) = inject {
            command.args(["-e", &format!("inject={inject}")]);
        }
        command.args(["-p", &pid.to_string(), "-o"]).arg(output);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let child = command.spawn().context("starting strace (Debian: strace)")?;
        let this = Self { child, output: output.to_owned() };
        eventually_within(ATTACH_WITHIN, "strace to be attached to every thread", async || {
            for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                let status = std::fs::read_to_string(task?.path().join("status"))?;
                if status.lines().any(|line| line == "TracerPid:\t0") {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await?;
        Ok(this)
    }

    /// Detaches from the process and returns its events.
    pub async fn finish(mut self) -> Result<Vec<Event>> {
        // strace detaches on SIGINT and writes the rest of its output; it may hang if threads start and end
        // meanwhile.
        let pid = self.child.id().to_string();
        ensure!(Command::new("kill").args(["-INT", &pid]).status()?.success(), "strace {pid} is gone");
        eventually_within(DETACH_WITHIN, "strace to let go", async || Ok(self.child.try_wait()?)).await?;
        parse(&std::fs::read_to_string(&self.output)?)
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _gone = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

/// Parses strace's output.
pub fn parse(text: &str) -> Result<Vec<Event>> {
    let mut unfinished: BTreeMap<&str, (u64, String)> = BTreeMap::new();
    let mut events = Vec::new();
    for line in text.lines() {
        // strace pads short thread ids with spaces.
        let Some((thread, rest)) = line.trim_start().split_once(' ') else { continue };
        let Some((time, what)) = rest.trim_start().split_once(' ') else { continue };
        let what = what.trim_start();
        let Some(time) = micros(time) else { continue };
        if let Some(begun) = what.strip_suffix("<unfinished ...>") {
            unfinished.insert(thread, (time, begun.trim_end().to_owned()));
            continue;
        }
        let resumed = what.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>"));
        let whole = match resumed {
            Some((_, rest)) => unfinished.remove(thread).map(|(start, begun)| (start, begun + rest)),
            None => Some((time, what.to_owned())),
        };
        // The start of a call that was in progress when strace attached is unknown.
        if let Some((start, whole)) = whole {
            events.extend(event(start, &whole));
        }
    }
    events.sort_by_key(|event: &Event| event.end);
    Ok(events)
}

/// Converts `1764088000.123456` to microseconds.
fn micros(time: &str) -> Option<u64> {
    let (seconds, fraction) = time.split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000 + fraction.get(..6)?.parse::<u64>().ok()?)
}

/// Parses one complete call; `None` if it failed, was injected or is not a call.
fn event(start: u64, whole: &str) -> Option<Event> {
    let (call, rest) = whole.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(") = ")?;
    if result.starts_with('-') || result.contains("INJECTED") {
        return None;
    }
    let took = result.rsplit_once('<')?.1.strip_suffix('>')?;
    let path = if call.starts_with("rename") || call.starts_with("unlink") {
        // Paths are in quotes; the last one counts.
        arguments.rsplit('"').nth(1)?
    } else {
        arguments.split_once('<')?.1.split_once('>')?.0
    };
    Some(Event { start, end: start + micros(took)?, call: call.to_owned(), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_put_together_and_failed_or_injected_ones_left_out() {
        let text = "\
10 100.000001 fdatasync(25</d/log-1>) = 0 <0.000100>
10 100.000002 fdatasync(25</d/log-1>) = 0 (INJECTED) <0.000100>
11 100.000003 pwrite64(9</d/objects/state-1/db>, \"\"..., 524288, 0 <unfinished ...>
10 100.000004 write(25</d/log-1>, \"\"..., 300) = -1 ENOSPC (No space left on device) <0.000010>
11 100.000009 <... pwrite64 resumed>) = 524288 <0.000006>
7     100.000020 unlink(\"/d/log-1\") = 0 <0.000001>
10 100.000030 renameat(AT_FDCWD</>, \"/d/CURRENT.new\", AT_FDCWD</>, \"/d/CURRENT\") = 0 <0.000001>
10 100.000040 +++ exited with 0 +++
";
        let seen: Vec<(String, String, u64, u64)> =
            parse(text).unwrap().into_iter().map(|it| (it.call, it.path, it.start, it.end)).collect();
        let expected = [
            ("pwrite64", "/d/objects/state-1/db", 100_000_003, 100_000_009),
            ("unlink", "/d/log-1", 100_000_020, 100_000_021),
            ("renameat", "/d/CURRENT", 100_000_030, 100_000_031),
            ("fdatasync", "/d/log-1", 100_000_001, 100_000_101),
        ];
        let mut expected: Vec<_> =
            expected.map(|(call, path, start, end)| (call.to_owned(), path.to_owned(), start, end)).into();
        expected.sort_by_key(|it| it.3);
        assert_eq!(seen, expected);
    }
}
