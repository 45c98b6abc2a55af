//! All masters are stopped for longer than tokens live: no container stops, a container that is killed is
//! restarted within its back-off, probes go on, and everything is told once the masters are back.
//!
//! `EPHOR_MASTERS_AWAY=10m` stops the masters for ten minutes, with tokens of five; the units are `s` and `m`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use tests::hosts::run;
use tests::{Cluster, How, duration, eventually, eventually_within};

/// Shortest lifetime of tokens that masters accept as a maximum.
const TOKEN_MIN: Duration = Duration::from_secs(10);
/// Back-off before the second restart of a container; the first one has none.
const SECOND_BACK_OFF: Duration = Duration::from_secs(10);
/// Maximum time that a restart takes on a busy machine, beyond its back-off.
const RESTART: Duration = Duration::from_secs(4);
/// The ServiceAccount's token in a container.
const TOKEN: &str = "var/run/secrets/kubernetes.io/serviceaccount/token";
/// Argument of a container's `sleep`, by which its process is found on the host.
const KILLED: &str = "424241";
const LEFT_ALONE: &str = "424242";

/// The directory that the pods share with the test, removed when this value is dropped.
struct Notes(PathBuf);

impl Notes {
    /// Returns the number of lines in a file.
    fn lines(&self, file: &str) -> usize {
        std::fs::read_to_string(self.0.join(file)).unwrap_or_default().lines().count()
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        // What is left is a few small files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_go_on_while_the_masters_are_away_for_longer_than_tokens_live() -> Result<()> {
    let away = duration("EPHOR_MASTERS_AWAY", Duration::ZERO)?;
    let lifetime = (away / 2).max(TOKEN_MIN);
    let flag = format!("{}s", lifetime.as_secs());
    let cluster = Cluster::up_with(1, 1, &["--service-account-max-token-expiration", &flag]).await?;
    let notes = Notes(std::env::temp_dir().join(format!("ephor-masters-away-{}", std::process::id())));
    std::fs::create_dir_all(&notes.0)?;
    create(&cluster, &notes, "killed", KILLED).await?;
    create(&cluster, &notes, "left-alone", LEFT_ALONE).await?;
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    for name in ["killed", "left-alone"] {
        eventually("a ready pod", async || Ok(is_ready(&pods.get(name).await?).then_some(()))).await?;
    }
    let alone = process(LEFT_ALONE)?;
    let token = Path::new("/proc").join(alone.0.to_string()).join("root").join(TOKEN);
    let first = std::fs::read_to_string(&token).with_context(|| format!("reading {}", token.display()))?;

    cluster.stop("m1", How::Kill)?;
    let stopped = Instant::now();
    let probes = notes.lines("probes-left-alone");
    let took = restart(KILLED, RESTART).await.context("the first restart")?;
    tokio::time::sleep(away.saturating_sub(stopped.elapsed())).await;
    let again = restart(KILLED, SECOND_BACK_OFF + RESTART).await.context("the second restart")?;
    let elapsed = stopped.elapsed();
    // A container that ran for ten minutes has no back-off any more.
    ensure!(!away.is_zero() || again >= SECOND_BACK_OFF, "restarted after {again:?}, before its back-off");
    ensure!(elapsed > lifetime, "the masters were away for {elapsed:?}, and tokens live {lifetime:?}");
    ensure!(process(LEFT_ALONE)? == alone, "a container stopped");
    ensure!(std::fs::read_to_string(&token)? == first, "the token changed without a master");
    let probed = notes.lines("probes-left-alone") - probes;
    // One a second; half of them may be late on a busy machine.
    ensure!(u64::try_from(probed)? >= elapsed.as_secs() / 2, "{probed} probes in {elapsed:?}");

    cluster.start("m1")?;
    cluster.nodes_ready(1).await?;
    eventually("both restarts to be told", async || {
        let pod = pods.get("killed").await?;
        let status = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref()?.first());
        Ok((is_ready(&pod) && status.is_some_and(|s| s.restart_count == 2)).then_some(()))
    })
    .await?;
    eventually("a new token", async || Ok((std::fs::read_to_string(&token)? != first).then_some(()))).await?;
    ensure!(process(LEFT_ALONE)? == alone && notes.lines("starts-left-alone") == 1, "a container stopped");
    ensure!(notes.lines("starts-killed") == 3, "it was started {} times", notes.lines("starts-killed"));
    println!("masters away for {elapsed:?}: restarts after {took:?} and {again:?}, {probed} probes");
    cluster.passed()
}

/// Creates a pod whose container and liveness probe each write a line to a file when they start.
async fn create(cluster: &Cluster, notes: &Notes, name: &str, sleep: &str) -> Result<()> {
    let shell = |line: String| json!(["/bin/sh", "-c", line]);
    let pod: Pod = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": "ephor.test/web:1", "imagePullPolicy": "IfNotPresent",
                "command": shell(format!("echo up >>/notes/starts-{name}; exec sleep {sleep}")),
                "livenessProbe": {
                    "exec": { "command": shell(format!("echo probed >>/notes/probes-{name}")) },
                    "periodSeconds": 1, "timeoutSeconds": 5,
                },
                "volumeMounts": [{ "name": "notes", "mountPath": "/notes" }],
            }],
            "volumes": [{ "name": "notes", "hostPath": { "path": notes.0, "type": "Directory" } }],
        },
    }))?;
    Api::default_namespaced(cluster.client()).create(&PostParams::default(), &pod).await?;
    Ok(())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// Returns the process that runs `sleep ARGUMENT`, and its start time.
fn process(argument: &str) -> Result<(i32, String)> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|n| n.to_str()?.parse::<i32>().ok()) else { continue };
        if is_sleep(&path, argument) {
            // A process that has ended meanwhile does not run.
            let Ok(stat) = std::fs::read_to_string(path.join("stat")) else { continue };
            let started = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19));
            found.insert((pid, started.unwrap_or_default().to_owned()));
        }
    }
    ensure!(found.len() == 1, "there are {} processes `sleep {argument}`", found.len());
    found.pop_first().context("no process")
}

fn is_sleep(process: &Path, argument: &str) -> bool {
    let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
    let mut words = command.split(|b| *b == 0);
    words.next().is_some_and(|w| w.ends_with(b"sleep")) && words.next() == Some(argument.as_bytes())
}

/// Kills the process of a container and waits for its next one; returns how long that took.
async fn restart(argument: &str, within: Duration) -> Result<Duration> {
    let before = process(argument)?;
    run(Command::new("kill").args(["-KILL", &before.0.to_string()]))?;
    let killed = Instant::now();
    eventually_within(within, "a new process", async || {
        Ok(process(argument).ok().filter(|now| *now != before).map(drop))
    })
    .await?;
    Ok(killed.elapsed())
}
