//! The processes of a dev cluster: started apart from the terminal, found again
//! through pid files that also hold the start time, so that a reused pid is
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

/// What the balancer's process is called.
pub const BALANCER: &str = "balancer";

/// Where the pid of a process lies.
pub(super) fn pid_file(name: &str) -> PathBuf {
    run_root().join(format!("{name}.pid"))
}

/// Starts `ephor ARGS` inside a node's namespaces.
pub fn spawn_node(layout: &Layout, node: &DevNode, arguments: &[String]) -> Result<()> {
    spawn(layout, &node.name, &on_node(layout, node, arguments)?)
}

/// Runs `ephor ARGS` inside a node's namespaces to its end.
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

/// Starts this binary in the background with its log in the cluster's root.
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

/// The pid of a running process of the cluster.
pub fn running(name: &str) -> Option<u32> {
    let text = fs::read_to_string(pid_file(name)).ok()?;
    let (pid, start) = text.split_once(' ')?;
    let pid = pid.parse().ok()?;
    (start_time(pid)? == start.trim().parse::<u64>().ok()?).then_some(pid)
}

/// Field 22 of /proc/PID/stat, in clock ticks since boot; `None` when it does
/// not run (a zombie does not).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = after_name.split(' ').collect();
    if *fields.first()? == "Z" {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// Sends a signal; false when nothing runs under that name.
pub fn signal(name: &str, signal: Signal) -> Result<bool> {
    let Some(pid) = running(name) else { return Ok(false) };
    kill(Pid::from_raw(i32::try_from(pid)?), signal)?;
    Ok(true)
}

/// Asks a process to end, and ends it when it does not within `patience`.
pub fn stop(name: &str, patience: Duration) -> Result<()> {
    // A paused process cannot hear SIGTERM.
    signal(name, Signal::SIGCONT)?;
    if signal(name, Signal::SIGTERM)? && !gone_within(name, patience) {
        signal(name, Signal::SIGKILL)?;
        if !gone_within(name, Duration::from_secs(10)) {
            bail!("{name} does not end, not even killed");
        }
    }
    forget(name)
}

/// `kill -9`, and waits until it is gone.
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
