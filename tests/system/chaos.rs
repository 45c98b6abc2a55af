//! Chaos experiments on a live cluster: an experiment that kills the leader and isolates the next one passes;
//! the node's agent ends a fault although its runner was killed and every master is dead, and also after the
//! agent itself was restarted; `ephor chaos recover` ends all faults at once.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::{Cluster, How, eventually};

/// Experiment: the leader is killed, its successor is isolated and then slowed down, and a follower's
/// messages are delayed.
const QUICK: &str = "
apiVersion: ephor.dev/v1alpha1
kind: Experiment
metadata: {name: quick}
spec:
  cluster: {masters: 3}
  workload: {clients: 4, rate: 40, keys: 20, mix: {create: 4, update: 4, delete: 1, get: 4, list: 1, watch: 1}}
  schedule:
  - {at: 1s, for: 4s, fault: {kill: {target: leader}}}
  - {at: 8s, for: 4s, fault: {cut: {shape: leader-alone}}}
  - {at: 14s, for: 3s, fault: {slow: {from: leader, to: all, latency: 40ms, jitter: 20ms}}}
  - {at: 18s, for: 1s, fault: {hold: {from: follower, to: all, oneWay: true}}}
  invariants: [acknowledged-writes-kept, no-phantoms, linearizable, watches-exact, one-leader-per-term,
               replicas-identical, minority-silent, heals]
  recoverWithin: 20s
  abortIf: {unavailableFor: 30s, lostWrites: 1}
  duration: 20s
";

/// Experiment whose faults last longer (FOR) than its runner lives.
const LONG: &str = "
apiVersion: ephor.dev/v1alpha1
kind: Experiment
metadata: {name: long}
spec:
  cluster: {masters: 3}
  workload: {clients: 1, rate: 5, keys: 5, mix: {create: 1, get: 1}}
  schedule:
  - {at: 0s, for: FOR, fault: {kill: {target: m3}}}
  - {at: 0s, for: FOR, fault: {slow: {from: m2, to: m1, oneWay: true, latency: 50ms}}}
  - {at: 0s, for: FOR, fault: {cut: {from: m1, to: m2}}}
  invariants: [acknowledged-writes-kept]
  duration: 300s
";

struct Chaos {
    cluster: Cluster,
    directory: tempfile::TempDir,
}

impl Chaos {
    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Starts a runner of an experiment in the background.
    fn run(&self, file: &Path) -> Result<Child> {
        let binary = std::env::var_os("EPHOR_BIN").context("EPHOR_BIN is not set: run ops/test")?;
        let mut run = Command::new(binary);
        run.args(["chaos", "run", "--live"]).arg(file);
        run.env("KUBECONFIG", self.cluster.kubeconfig()).stdout(Stdio::null());
        Ok(run.spawn()?)
    }

    fn runs(&self, node: &str) -> Result<bool> {
        let nodes = self.cluster.ephor(&["dev", "ps"])?;
        let line = nodes.lines().find(|line| line.split_whitespace().next() == Some(node));
        Ok(!line.with_context(|| format!("no {node} in:\n{nodes}"))?.trim_end().ends_with('-'))
    }

    async fn until_runs(&self, node: &str, runs: bool) -> Result<()> {
        let what = format!("{node} {}", if runs { "to run" } else { "to be dead" });
        eventually(&what, async || Ok((self.runs(node)? == runs).then_some(()))).await
    }

    /// Returns whether packets are dropped on a node.
    fn is_cut(&self, node: &str) -> Result<bool> {
        let tables = self.cluster.ephor(&["dev", "exec", node, "--", "nft", "list", "tables", "inet"])?;
        Ok(tables.contains("ephor_chaos_"))
    }

    async fn until_cut(&self, node: &str, cut: bool) -> Result<()> {
        let what = format!("{node} {}", if cut { "to be cut off" } else { "to be heard again" });
        eventually(&what, async || Ok((self.is_cut(node)? == cut).then_some(()))).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn experiments_run_on_a_live_cluster_and_every_fault_ends() -> Result<()> {
    let cluster = Cluster::up_with(3, 0, &["--chaos"]).await?;
    let chaos = Chaos { cluster, directory: tempfile::tempdir()? };
    a_quick_experiment_passes(&chaos)?;
    recover_undoes_everything(&chaos).await?;
    an_orphaned_fault_ends_at_its_limit(&chaos).await?;
    chaos.cluster.passed()
}

fn a_quick_experiment_passes(chaos: &Chaos) -> Result<()> {
    let file = chaos.file("quick.yaml", QUICK)?;
    let file = file.to_string_lossy();
    let report =
        chaos.cluster.ephor(&["chaos", "run", "--live", "--output", "json", "--seed", "7", &file])?;
    let journal: serde_json::Value = serde_json::from_str(report.trim())?;
    let faults = journal["ephor"]["faults"].as_array().context("a journal without faults")?;
    ensure!(faults.len() == 4, "four faults: {faults:?}");
    for fault in faults {
        ensure!(fault["fired"].as_u64().is_some_and(|fired| fired > 0), "it fired: {fault}");
    }
    for fault in &faults[..2] {
        for time in ["electUs", "firstWriteUs", "fullHealUs"] {
            ensure!(fault[time].as_u64().is_some_and(|us| us > 0), "{time} of {fault}");
        }
    }
    println!("quick: {}", journal["ephor"]["operations"]);
    Ok(())
}

/// Checks that a fault ends at its time limit although the runner was killed, all masters are dead, and an
/// agent was restarted.
async fn an_orphaned_fault_ends_at_its_limit(chaos: &Chaos) -> Result<()> {
    let begun = Instant::now();
    let mut runner = chaos.run(&chaos.file("orphan.yaml", &LONG.replace("FOR", "20s"))?)?;
    chaos.until_runs("m3", false).await?;
    chaos.until_cut("m2", true).await?;
    runner.kill()?;
    runner.wait()?;
    for master in ["m1", "m2"] {
        chaos.cluster.stop(master, How::Kill)?;
    }
    chaos.cluster.stop("m3-chaos", How::Kill)?;
    ensure!(!chaos.runs("m3")? && chaos.is_cut("m2")?, "both faults are there when nobody is left");
    ensure!(begun.elapsed() < Duration::from_secs(19), "that took too long to show anything");
    chaos.cluster.ephor(&["dev", "start", "m3-chaos"])?;
    chaos.until_runs("m3", true).await?;
    chaos.until_cut("m2", false).await?;
    ensure!(!chaos.runs("m1")? && !chaos.runs("m2")?, "no other master lived meanwhile");
    println!("orphaned faults ended after {:?}", begun.elapsed());
    for master in ["m1", "m2"] {
        chaos.cluster.start(master)?;
    }
    chaos.cluster.masters_agree().await
}

async fn recover_undoes_everything(chaos: &Chaos) -> Result<()> {
    let mut runner = chaos.run(&chaos.file("recover.yaml", &LONG.replace("FOR", "200s"))?)?;
    chaos.until_runs("m3", false).await?;
    chaos.until_cut("m2", true).await?;
    runner.kill()?;
    runner.wait()?;
    let undone = chaos.cluster.ephor(&["chaos", "recover"])?;
    ensure!(
        undone.matches("undone").count() == 4,
        "m3's kill, m1's delay and two halves of a cut:\n{undone}"
    );
    ensure!(chaos.runs("m3")? && !chaos.is_cut("m2")?, "nothing is left after:\n{undone}");
    chaos.cluster.masters_agree().await
}
