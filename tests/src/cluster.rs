//! A dev cluster for one test: started with `ephor dev up`, removed when the value is dropped. If the test
//! has failed, the nodes' logs are printed first.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;

use crate::wait::eventually;

/// Ways to stop a node's process.
#[derive(Debug, Clone, Copy)]
pub enum How {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, until `resume`.
    Pause,
}

/// A running cluster.
pub struct Cluster {
    binary: PathBuf,
    root: PathBuf,
    client: Client,
    passed: bool,
}

impl Cluster {
    /// Starts a cluster with the test images on every worker.
    pub async fn up(masters: u8, workers: u8) -> Result<Self> {
        Self::up_prepared(masters, workers, &[], |_| Ok(())).await
    }

    /// Starts a cluster like [`Cluster::up`], with more arguments for `ephor dev up`.
    pub async fn up_with(masters: u8, workers: u8, more: &[&str]) -> Result<Self> {
        Self::up_prepared(masters, workers, more, |_| Ok(())).await
    }

    /// Starts a cluster like [`Cluster::up_with`]; `prepare` is first called with the still empty directory
    /// of the nodes' data.
    pub async fn up_prepared(
        masters: u8,
        workers: u8,
        more: &[&str],
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let binary =
            PathBuf::from(std::env::var_os("EPHOR_BIN").context("EPHOR_BIN is not set: run ops/test")?);
        let images =
            PathBuf::from(std::env::var_os("EPHOR_TEST_IMAGES").context("EPHOR_TEST_IMAGES is not set")?);
        let root = PathBuf::from("/var/lib/ephor-test");
        run(Command::new(&binary).args(["dev", "down", "--root"]).arg(&root))?;
        prepare(&root.join("nodes"))?;
        let mut up = Command::new(&binary);
        up.args(["dev", "--root"]).arg(&root).arg("up");
        up.args(["--masters", &masters.to_string(), "--workers", &workers.to_string()]).args(more);
        for entry in std::fs::read_dir(images)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "tar") {
                up.arg("--image").arg(path);
            }
        }
        let client = run(&mut up).map(drop);
        if let Err(error) = client {
            keep_logs(&root);
            return Err(error);
        }
        let client = client_for(&root.join("kubeconfig"), None).await?;
        Ok(Self { binary, root, client, passed: false })
    }

    /// Marks the test as passed; otherwise the logs are printed when the cluster is dropped.
    pub fn passed(mut self) -> Result<()> {
        self.passed = true;
        Ok(())
    }

    /// Returns a client that uses the balancer.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Creates a client that uses one master only.
    pub async fn client_of(&self, master: &str) -> Result<Client> {
        let address = self.address(master)?;
        client_for(&self.kubeconfig(), Some(&format!("https://{address}:6443"))).await
    }

    /// Returns the directory of the nodes' files.
    pub fn root(&self) -> &std::path::Path {
        &self.root
    }

    /// Returns the path of the operator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// Returns the data directory of a node.
    pub fn data_dir(&self, node: &str) -> PathBuf {
        self.root.join("nodes").join(node)
    }

    /// Returns the log of a node.
    pub fn log(&self, node: &str) -> Result<String> {
        Ok(std::fs::read_to_string(self.root.join("logs").join(format!("{node}.log")))?)
    }

    /// Returns the address of a node on the bridge.
    pub fn address(&self, node: &str) -> Result<String> {
        let output = self.ephor(&["dev", "ps"])?;
        let line = output.lines().find(|l| l.split_whitespace().next() == Some(node));
        let address = line.and_then(|l| l.split_whitespace().nth(2));
        Ok(address.with_context(|| format!("no node {node} in:\n{output}"))?.to_owned())
    }

    /// Runs `ephor` and returns its standard output; the error contains its outputs.
    pub fn ephor(&self, arguments: &[&str]) -> Result<String> {
        Ok(String::from_utf8(run(&mut self.ephor_command(arguments))?.stdout)?)
    }

    /// Builds an `ephor` command for this cluster, for callers that need more than arguments.
    pub fn ephor_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env("EPHOR_DEV_ROOT", &self.root).env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// Runs the real kubectl and returns its standard output; the error contains its outputs.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        Ok(String::from_utf8(run(self.kubectl_command()?.args(arguments))?.stdout)?)
    }

    /// Builds a command of the real kubectl, for callers that need more than arguments.
    pub fn kubectl_command(&self) -> Result<Command> {
        let program = std::env::var_os("EPHOR_KUBECTL").context("EPHOR_KUBECTL is not set: run ops/test")?;
        let mut command = Command::new(program);
        command.env("KUBECONFIG", self.kubeconfig());
        Ok(command)
    }

    /// Returns the name of the leading master.
    pub async fn leader(&self) -> Result<String> {
        eventually("a leader", async || {
            let members = self.ephor(&["members"])?;
            let line = members.lines().find(|l| l.trim_end().ends_with("leader"));
            Ok(line.and_then(|l| l.split_whitespace().nth(1)).map(str::to_owned))
        })
        .await
    }

    /// Kills or pauses a node's process.
    pub fn stop(&self, node: &str, how: How) -> Result<()> {
        let how = match how {
            How::Kill => "kill",
            How::Pause => "pause",
        };
        self.ephor(&["dev", "stop", node, "--how", how]).map(drop)
    }

    /// Starts a node's process again.
    pub fn start(&self, node: &str) -> Result<()> {
        self.ephor(&["dev", "start", node]).map(drop)
    }

    /// Resumes a paused node.
    pub fn resume(&self, node: &str) -> Result<()> {
        self.ephor(&["dev", "resume", node]).map(drop)
    }

    /// Cuts a node's link (`down`) or restores it (`up`).
    pub fn link(&self, node: &str, state: &str) -> Result<()> {
        self.ephor(&["dev", "link", node, state]).map(drop)
    }

    /// Waits until every master answers `ephor status` and holds the same state.
    pub async fn masters_agree(&self) -> Result<()> {
        let wanted = self.ephor(&["dev", "ps"])?.matches(" master ").count();
        eventually("all masters with one digest", async || {
            let status = self.ephor(&["status", "--digest"])?;
            Ok((status.matches(" digest ").count() == wanted).then_some(()))
        })
        .await
    }

    /// Waits until all nodes are Ready.
    pub async fn nodes_ready(&self, wanted: usize) -> Result<()> {
        let nodes = Api::<Node>::all(self.client());
        eventually("all nodes Ready", async || {
            let list = nodes.list(&ListParams::default()).await?;
            Ok((list.items.iter().filter(|n| is_ready(n)).count() == wanted).then_some(()))
        })
        .await
    }

    /// Applies the example and waits until its three pods are ready.
    pub async fn deploy_web(&self) -> Result<()> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/examples/web.yaml");
        self.kubectl(&["apply", "-f", file])?;
        self.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).map(drop)
    }

    /// Creates a pod that sleeps; returns once the API server has accepted it.
    pub async fn create_sleeper(&self, name: &str) -> Result<Pod> {
        let pod: Pod = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": { "terminationGracePeriodSeconds": 0, "containers": [
                { "name": "sleeper", "image": "ephor.test/sleeper:1", "imagePullPolicy": "IfNotPresent" }
            ] }
        }))?;
        Ok(Api::default_namespaced(self.client()).create(&PostParams::default(), &pod).await?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.passed {
            keep_logs(&self.root);
        }
        let mut down = Command::new(&self.binary);
        if let Err(error) = run(down.args(["dev", "down", "--root"]).arg(&self.root)) {
            eprintln!("taking the cluster down: {error:#}");
        }
    }
}

/// Prints the ends of the logs, which are then removed with the cluster.
fn keep_logs(root: &std::path::Path) {
    let Ok(entries) = std::fs::read_dir(root.join("logs")) else { return };
    for entry in entries.flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("--- {} ---", entry.path().display());
        for line in lines.iter().skip(lines.len().saturating_sub(60)) {
            eprintln!("{line}");
        }
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(output)
}

pub(crate) async fn client_for(kubeconfig: &std::path::Path, server: Option<&str>) -> Result<Client> {
    let mut file = Kubeconfig::read_from(kubeconfig)?;
    if let Some(server) = server {
        for cluster in file.clusters.iter_mut().filter_map(|c| c.cluster.as_mut()) {
            cluster.server = Some(server.to_owned());
        }
    }
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    config.connect_timeout = Some(Duration::from_secs(2));
    config.read_timeout = Some(Duration::from_secs(60));
    Ok(Client::try_from(config)?)
}
