//! A cluster set up by hand as in the README: a master, a token, and a worker on its own host; an image
//! pulled from a registry; and `ephor reset` after a crash, which leaves nothing behind.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use tests::hosts::{Bridge, Host, run};
use tests::{eventually, says};

const PREFIX: &str = "ephops";
const SUBNET: &str = "10.99.7";
const MASTER: &str = "10.99.7.1";
const WORKER: &str = "10.99.7.2";
const CGROUP: &str = "/ephor-ops";
/// The registry listens on the worker's own loopback address.
const REGISTRY_PORT: &str = "5555";

/// Directory with all files of the cluster.
struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn path(&self, name: &str) -> String {
        self.root.path().join(name).to_string_lossy().into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_made_by_hand_pulls_runs_and_is_taken_off_again() -> Result<()> {
    let place = Place { root: tempfile::tempdir()? };
    let result = from_init_to_reset(&place).await;
    if result.is_err() {
        for log in ["master.log", "worker.log"] {
            eprintln!("--- {log} ---\n{}", fs::read_to_string(place.path(log)).unwrap_or_default());
        }
    }
    result
}

async fn from_init_to_reset(place: &Place) -> Result<()> {
    let bridge = Bridge::new(PREFIX, SUBNET)?;
    let (m, w) = (bridge.host("m", 1)?, bridge.host("w", 2)?);
    let kubeconfig = place.path("kubeconfig");
    let data = place.path("master");
    let even = m.refused(&["master", "--init", "--masters", "4", "--advertise-address", MASTER])?;
    says(&even, &["no more failures than 3"])?;
    let unasked = m.refused(&["master", "--data-dir", &data, "--advertise-address", MASTER])?;
    says(&unasked, &["is empty", "ephor members replace", "ephor members add", "--init"])?;

    let daily =
        ["master", "--masters", "1", "--advertise-address", MASTER, "--name", "a", "--data-dir", &data];
    let init = [&daily[..], &["--init"]].concat();
    says(&m.ephor(&init)?, &["was created", "Start its first master"])?;
    says(&m.refused(&init)?, &["needed once"])?;
    let master = m.start(&place.root.path().join("master.log"), &daily)?;
    let server = format!("https://{MASTER}:6443");
    m.ephor(&["kubeconfig", "--data-dir", &data, "--server", &server, "-o", &kubeconfig])?;
    eventually("the API", async || Ok(kubectl(&m, &kubeconfig, "get --raw /readyz").ok())).await?;
    // The leader publishes the list of masters a moment after it starts serving.
    eventually("the members", async || {
        says(&m.ephor(&["members", "--kubeconfig", &kubeconfig])?, &[" a ", "leader"]).map(Some)
    })
    .await?;

    let token = tokens(&m, &kubeconfig)?;
    let (data, run_dir) = (place.path("worker"), place.path("run"));
    let worker = |token: &str| {
        let mut all: Vec<String> = ["worker", "--name", "w", "--address", WORKER].map(String::from).into();
        for (flag, value) in [
            ("--join", format!("{MASTER}:6444")),
            ("--token", token.to_owned()),
            ("--data-dir", data.clone()),
            ("--run-dir", run_dir.clone()),
            ("--cgroup-root", CGROUP.to_owned()),
            ("--insecure-registry", format!("127.0.0.1:{REGISTRY_PORT}")),
        ] {
            all.extend([flag.to_owned(), value]);
        }
        all
    };
    let start = |token: &str| {
        let arguments = worker(token);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        w.start(&place.root.path().join("worker.log"), &arguments)
    };
    // A token with the right CA but an invalid secret.
    let forged = format!("{}.0000000000000000", token.rsplit_once('.').context("a token has parts")?.0);
    let mut turned_away = start(&forged)?;
    let end = eventually("the end of the worker", async || turned_away.ended()).await?;
    ensure!(!end.success(), "a forged token was accepted");
    let running = start(&token)?;
    eventually("the worker to be Ready", async || {
        let node = kubectl(&m, &kubeconfig, "get node w --no-headers")?;
        Ok(node.split_whitespace().any(|word| word == "Ready").then_some(()))
    })
    .await?;

    pull(&w, &run_dir, &m, &kubeconfig).await?;
    running.kill()?;
    master.kill()?;
    ensure!(!processes(&run_dir)?.is_empty(), "containers outlive the worker that was killed");
    let unsure = w.refused(&["reset", "--worker-data-dir", &data, "--run-dir", &run_dir])?;
    says(&unsure, &["--yes"])?;
    for host in [&m, &w] {
        let master_data = place.path("master");
        let places = ["--master-data-dir", &master_data, "--worker-data-dir", &data, "--run-dir", &run_dir];
        host.ephor(&[&["reset", "--yes", "--cgroup-root", CGROUP], &places[..]].concat())?;
    }
    nothing_is_left(&[&m, &w], &[&place.path("master"), &data, &run_dir])
}

fn kubectl(host: &Host, kubeconfig: &str, line: &str) -> Result<String> {
    let program = std::env::var_os("EPHOR_KUBECTL").context("EPHOR_KUBECTL is not set: run ops/test")?;
    run(host.command(program).args(line.split_whitespace()).env("KUBECONFIG", kubeconfig))
}

/// Creates, lists and deletes tokens; returns a token for a worker.
fn tokens(host: &Host, kubeconfig: &str) -> Result<String> {
    let token = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().chain(["--kubeconfig", kubeconfig]).collect();
        host.ephor(&words)
    };
    let worker = token("token create --role worker --ttl 1h")?.trim().to_owned();
    let other = token("token create --role master")?.trim().to_owned();
    let id = |token: &str| token.split('.').nth(2).map(str::to_owned).context("a token has an id");
    says(&token("token list")?, &[&id(&worker)?, &id(&other)?])?;
    token(&format!("token delete {}", id(&other)?))?;
    let list = token("token list")?;
    ensure!(list.contains(&id(&worker)?) && !list.contains(&id(&other)?), "{list}");
    Ok(worker)
}

/// Pulls an image from a registry, first by hand and then through a pod.
async fn pull(worker: &Host, run_dir: &str, master: &Host, kubeconfig: &str) -> Result<()> {
    let images = std::env::var("EPHOR_TEST_IMAGES")?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/images/registry");
    let mut registry = worker.command(script);
    let registry = registry.args([&images, REGISTRY_PORT]).stdout(Stdio::null()).spawn()?;
    let _registry = Registry(registry);
    let socket = format!("{run_dir}/cri.sock");
    let image = format!("127.0.0.1:{REGISTRY_PORT}/ephor/web:1");
    eventually("the image to be pulled", async || {
        Ok(worker.ephor(&["image", "pull", &image, "--socket", &socket]).ok())
    })
    .await?;
    says(&worker.ephor(&["image", "ls", "--socket", &socket])?, &[&image])?;
    let missing = worker.refused(&["image", "pull", &format!("{image}23"), "--socket", &socket])?;
    says(&missing, &["web:123"])?;
    kubectl(master, kubeconfig, &format!("run web --image={image} --image-pull-policy=Always"))?;
    kubectl(master, kubeconfig, "wait --for=condition=Ready pod/web --timeout=60s").map(drop)
}

/// Process of the script that runs an image registry; on SIGTERM the script stops the registry.
struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        let asked = run(Command::new("kill").arg(self.0.id().to_string()));
        if let Err(error) = asked.map(drop).and(self.0.wait().map(drop).map_err(anyhow::Error::from)) {
            eprintln!("ending the registry: {error:#}");
        }
    }
}

/// Lists the processes whose command line names a directory.
fn processes(directory: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(command) = fs::read(entry?.path().join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(directory) && command.contains("shim") {
            found.push(command);
        }
    }
    Ok(found)
}

fn nothing_is_left(hosts: &[&Host], directories: &[&str]) -> Result<()> {
    for directory in directories {
        ensure!(!Path::new(directory).exists(), "{directory} is left");
        let processes = processes(directory)?;
        ensure!(processes.is_empty(), "processes are left: {processes:?}");
        for host in hosts {
            let mounts = run(host.command("cat").arg("/proc/self/mounts"))?;
            ensure!(!mounts.contains(directory), "mounts are left:\n{mounts}");
        }
    }
    for host in hosts {
        let tables = run(host.command("nft").args(["list", "tables"]))?;
        ensure!(tables.trim().is_empty(), "nftables rules are left: {tables}");
        let links = run(host.command("ip").args(["-o", "link"]))?;
        let left = |line: &&str| !line.contains(": lo:") && !line.contains(": eth0@");
        ensure!(links.lines().filter(left).count() == 0, "devices are left:\n{links}");
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
        let cgroup = hierarchy?.path().join(CGROUP.trim_start_matches('/'));
        ensure!(!cgroup.exists(), "{} is left", cgroup.display());
    }
    Ok(())
}
