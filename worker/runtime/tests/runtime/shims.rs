//! Tests shims that are slow, hanging or gone. Needs root.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::test_runtime::{Pod, TestRuntime, ended, exec, is_root, status, until};

/// Sends a signal to a pod's shim.
fn signal(node: &TestRuntime, pod: &Pod, signal: Signal) -> Result<()> {
    let file = node.directory.path().join("state/sandboxes").join(&pod.id).join("shim.pid");
    let text = std::fs::read_to_string(file)?;
    let pid = text.split(' ').next().context("no process")?.parse()?;
    Ok(kill(Pid::from_raw(pid), signal)?)
}

/// Returns the number of processes in a container's cgroup.
fn processes(node: &TestRuntime, pod: &str, container: &str) -> usize {
    let relative = Path::new(node.cgroup.trim_start_matches('/')).join("kubepods").join(pod).join(container);
    let hierarchies = ["memory", "", "unified"].map(|h| Path::new("/sys/fs/cgroup").join(h));
    let file = hierarchies.into_iter().map(|h| h.join(&relative).join("cgroup.procs")).find(|f| f.exists());
    std::fs::read_to_string(file.unwrap_or_else(PathBuf::new)).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn a_shim_that_is_slow_while_the_runtime_starts_is_not_dead() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("slow").await?;
    let id = pod.run(&node, pod.script("main", "exec /bin/sleeper")).await?;
    let before = exec(&node, &id, "cut -d' ' -f22 /proc/1/stat", 30).await?;
    signal(&node, &pod, Signal::SIGSTOP)?;
    node.restart().await?;
    ensure!(status(&node, &id).await?.state() == v1::ContainerState::ContainerRunning);
    signal(&node, &pod, Signal::SIGCONT)?;
    let after = exec(&node, &id, "cut -d' ' -f22 /proc/1/stat", 30).await?;
    ensure!(before.stdout == after.stdout && !after.stdout.is_empty(), "{before:?} {after:?}");
    node.finish(&[&pod]).await
}

#[tokio::test]
async fn a_pod_whose_shim_is_stuck_can_be_stopped() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let pod = node.run_pod("stuck").await?;
    let id = pod.run(&node, pod.script("main", "trap '' TERM; while :; do sleep 1; done")).await?;
    signal(&node, &pod, Signal::SIGSTOP)?;
    node.runtime()
        .await?
        .stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() })
        .await?;
    let status = status(&node, &id).await?;
    ensure!(status.state() == v1::ContainerState::ContainerExited, "{status:?}");
    ensure!(processes(&node, "pod-stuck", &id) == 0);
    node.finish(&[&pod]).await
}

#[tokio::test]
async fn nothing_of_a_pod_outlives_its_shim() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let node = TestRuntime::start().await?;
    node.load_sleeper().await?;
    let mut pods = Vec::new();
    for (name, mode) in [("host", v1::NamespaceMode::Node), ("shared", v1::NamespaceMode::Pod)] {
        let pod =
            node.run_pod_with(name, v1::NamespaceOption { pid: mode.into(), ..Default::default() }).await?;
        // Each process forks a child and ends, so that killing the processes of an
        // earlier list is always too late.
        let script = "hop() { hop & exit; }; hop & echo up; exec /bin/sleeper";
        let id = pod.run(&node, pod.script(name, script)).await?;
        until("it hops", || pod.log(name) == ["stdout F up"]).await?;
        signal(&node, &pod, Signal::SIGKILL)?;
        let status = ended(&node, &id).await?;
        ensure!(status.exit_code == 255 && status.reason == "Unknown", "{status:?}");
        until("nothing is left", || processes(&node, &format!("pod-{name}"), &id) == 0).await?;
        pods.push(pod);
    }
    node.finish(&pods.iter().collect::<Vec<_>>()).await
}
