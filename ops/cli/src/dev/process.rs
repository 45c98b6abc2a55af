//! The processes of a dev cluster: started detached from the terminal, and found again
//! by pid files that also hold the start time, so that a reused pid is
//! never mistaken for a node.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout::{DevNode, Layout, run_root};

/// Name of the balancer's process.
pub const BALANCER: &str = "balancer";

/// Path of the file with the pid of a process.
pub(super) fn pid_file(name: &str) -> PathBuf {
    run_root().join(format!("{name}.pid"))
}

/// Starts `ephor ARGS` inside a node's namespaces.
pub fn spawn_node(layout: &Layout, node: &DevNode, arguments: &[String]) -> Result<()> {
    spawn(layout, &node.name, &on_node(layout, node, arguments)?)
}

/// Runs `ephor ARGS` inside a node's namespaces and waits for its end.
pub fn run_on_node(layout: &Layout, node: &DevNode, arguments: &[String]) -> Result<()> {
    let output = Command::new(std::env::current_exe()?).args(on_node(layout, node, arguments)?).output()?;
    ensure!(output.status.success(), "{}: {}", node.name, String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn on_node(layout: &Layout, node: &DevNode, arguments: &[String]) -> Result<Vec<String>> {
    let exe = std::env::current_exe()?.to_string_lossy().into_owned();
    let mut command = vec!["dev".to_owned(), "--root".into(), layout.root.to_string_lossy().into_owned()];
    command.extend(["exec".to_owned(), node.name.clone(), "--".into(), exe]);
    command.extend_from_slice(arguments);
    Ok(command)
}

/// Starts this binary in the background; its log goes to the cluster's root.
pub fn spawn(layout: &Layout, name: &str, arguments: &[String]) -> Result<()> {
    if running(name).is_some() {
        return Ok(());
    }
    let path = layout.log_file(name);
    let log = OpenOptions::new().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("opening {}", path.display()))?;
    let child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let pid = child.id();
    let start = start_time(pid).with_context(|| format!("{name} ended at once; see {}", path.display()))?;
    fs::create_dir_all(run_root())?;
    fs::write(pid_file(name), format!("{pid} {start}"))?;
    Ok(())
}

/// Returns the pid of a process of the cluster; `None` when it is not running.
pub fn running(name: &str) -> Option<u32> {
    let text = fs::read_to_string(pid_file(name)).ok()?;
    let (pid, start) = text.split_once(' ')?;
    let pid = pid.parse().ok()?;
    (start_time(pid)? == start.trim().parse::<u64>().ok()?).then_some(pid)
}

/// Returns field 22 of /proc/PID/stat, in clock ticks since boot; `None` when the process is
/// not running (a zombie is not).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = after_name.split(' ').collect();
    if *fields.first()? == "Z" {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// Sends a signal; false when no process of that name is running.
pub fn signal(name: &str, signal: Signal) -> Result<bool> {
    let Some(pid) = running(name) else { return Ok(false) };
    kill(Pid::from_raw(i32::try_from(pid)?), signal)?;
    Ok(true)
}

/// Sends SIGTERM, and SIGKILL when the process has not ended within `patience`.
pub fn stop(name: &str, patience: Duration) -> Result<()> {
    // A paused process does not handle SIGTERM until it continues.
    signal(name, Signal::SIGCONT)?;
    if signal(name, Signal::SIGTERM)? && !gone_within(name, patience) {
        signal(name, Signal::SIGKILL)?;
        if !gone_within(name, Duration::from_secs(10)) {
            bail!("{name} does not end, not even killed");
        }
    }
    forget(name)
}

/// Sends SIGKILL, and waits until the process is gone.
pub fn kill_now(name: &str) -> Result<()> {
    if signal(name, Signal::SIGKILL)? && !gone_within(name, Duration::from_secs(10)) {
        bail!("{name} does not end, not even killed");
    }
    forget(name)
}

fn forget(name: &str) -> Result<()> {
    match fs::remove_file(pid_file(name)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

fn gone_within(name: &str, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    while running(name).is_some() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}
