//! A cluster set up by hand, as the README says: a master, a token, a worker on
//! a host of its own; an image from a registry; and `ephor reset` after a
//! crash, which leaves nothing behind.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use tests::{eventually, says};

const PREFIX: &str = "ephor-ops";
const MASTER: &str = "10.99.7.1";
const WORKER: &str = "10.99.7.2";
const CGROUP: &str = "/ephor-ops";
/// The registry listens on the worker's own loopback address.
const REGISTRY_PORT: &str = "5555";

/// A host: a network and a mount namespace that a sleeping process holds.
struct Host {
    namespace: String,
    holder: Child,
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{command:?} failed: {}{}", text(&output.stderr), text(&output.stdout));
    Ok(text(&output.stdout))
}

fn ip(line: &str) -> Result<String> {
    run(Command::new("ip").args(line.split_whitespace()))
}

impl Host {
    fn new(name: &str) -> Result<Self> {
        let namespace = format!("{PREFIX}-{name}");
        ip(&format!("netns add {namespace}"))?;
        ip(&format!("-n {namespace} link set lo up"))?;
        // `ip netns exec` would hide the cgroups.
        let net = format!("--net=/run/netns/{namespace}");
        let holder =
            Command::new("nsenter").args([&net, "unshare", "--mount", "sleep", "infinity"]).spawn()?;
        Ok(Self { namespace, holder })
    }

    /// A command inside.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder.id().to_string(), "-n", "-m", "--"]).arg(program.as_ref());
        command
    }

    fn ephor(&self, arguments: &[&str]) -> Result<String> {
        run(self.command(binary()?).args(arguments))
    }

    /// Starts `ephor` in the background with its log in a file.
    fn start(&self, log: &Path, arguments: &[&str]) -> Result<Running> {
        let log = File::create(log)?;
        let mut command = self.command(binary()?);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Running(command.spawn()?))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let ended = self.holder.kill().and_then(|()| self.holder.wait());
        if let Err(error) =
            ended.map_err(anyhow::Error::from).and(ip(&format!("netns del {}", self.namespace)))
        {
            eprintln!("removing {}: {error:#}", self.namespace);
        }
    }
}

/// A process that is killed with SIGKILL, at the latest when this is dropped.
struct Running(Child);

impl Running {
    fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.kill().and_then(|()| self.0.wait()).is_err() {
            eprintln!("a process could not be ended");
        }
    }
}

fn binary() -> Result<PathBuf> {
    Ok(PathBuf::from(std::env::var_os("EPHOR_BIN").context("EPHOR_BIN is not set: run ops/test")?))
}

/// Two hosts with a cable between them.
fn hosts() -> Result<(Host, Host)> {
    let (master, worker) = (Host::new("m")?, Host::new("w")?);
    let (m, w) = (&master.namespace, &worker.namespace);
    ip(&format!("link add {PREFIX}-c1 netns {m} type veth peer name {PREFIX}-c2 netns {w}"))?;
    for (namespace, device, address) in [(m, "c1", MASTER), (w, "c2", WORKER)] {
        ip(&format!("-n {namespace} addr add {address}/24 dev {PREFIX}-{device}"))?;
        ip(&format!("-n {namespace} link set {PREFIX}-{device} up"))?;
    }
    Ok((master, worker))
}

/// Everything of the cluster that is kept in files.
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
    let (m, w) = hosts()?;
    let kubeconfig = place.path("kubeconfig");
    let data = place.path("master");
    let refused = m.ephor(&["master", "--init", "--masters", "4", "--advertise-address", MASTER]);
    says(
        &format!("{:#}", refused.err().context("an even size was accepted")?),
        &["no more failures than 3"],
    )?;
    let lost = m.ephor(&["master", "--data-dir", &data, "--advertise-address", MASTER]);
    says(&format!("{:#}", lost.err().context("it made a cluster unasked")?), &["--init", "--join"])?;

    let init = ["master", "--init", "--masters", "1", "--advertise-address", MASTER, "--name", "a"];
    let master =
        m.start(&place.root.path().join("master.log"), &[&init[..], &["--data-dir", &data]].concat())?;
    eventually("the master's kubeconfig", async || {
        let server = format!("https://{MASTER}:6443");
        Ok(m.ephor(&["kubeconfig", "--data-dir", &data, "--server", &server, "-o", &kubeconfig]).ok())
    })
    .await?;
    eventually("the API", async || Ok(m.kubectl(&kubeconfig, "get --raw /readyz").ok())).await?;
    says(&m.ephor(&["members", "--kubeconfig", &kubeconfig])?, &[" a ", "leader"])?;

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
    // The right CA, a secret nobody gave out.
    let forged = format!("{}.0000000000000000", token.rsplit_once('.').context("a token has parts")?.0);
    let mut turned_away = start(&forged)?;
    ensure!(!turned_away.0.wait()?.success(), "a forged token was accepted");
    let running = start(&token)?;
    eventually("the worker to be Ready", async || {
        let node = m.kubectl(&kubeconfig, "get node w --no-headers")?;
        Ok(node.split_whitespace().any(|word| word == "Ready").then_some(()))
    })
    .await?;

    pull(&w, &run_dir, &m, &kubeconfig).await?;
    running.kill()?;
    master.kill()?;
    ensure!(!processes(&run_dir)?.is_empty(), "containers outlive the worker that was killed");
    let unsure = w.ephor(&["reset", "--worker-data-dir", &data, "--run-dir", &run_dir]);
    says(&format!("{:#}", unsure.err().context("it did not ask")?), &["--yes"])?;
    for host in [&m, &w] {
        let master_data = place.path("master");
        let places = ["--master-data-dir", &master_data, "--worker-data-dir", &data, "--run-dir", &run_dir];
        host.ephor(&[&["reset", "--yes", "--cgroup-root", CGROUP], &places[..]].concat())?;
    }
    nothing_is_left(&[&m, &w], &[&place.path("master"), &data, &run_dir])
}

impl Host {
    fn kubectl(&self, kubeconfig: &str, line: &str) -> Result<String> {
        let program = std::env::var_os("EPHOR_KUBECTL").context("EPHOR_KUBECTL is not set: run ops/test")?;
        run(self.command(program).args(line.split_whitespace()).env("KUBECONFIG", kubeconfig))
    }
}

/// Creates, lists and deletes tokens; returns one for a worker.
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

/// Pulls an image from a registry, by hand and through a pod.
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
    let missing = worker.ephor(&["image", "pull", &format!("{image}23"), "--socket", &socket]);
    says(&format!("{:#}", missing.err().context("a missing tag was pulled")?), &["web:123"])?;
    master.kubectl(kubeconfig, &format!("run web --image={image} --image-pull-policy=Always"))?;
    master.kubectl(kubeconfig, "wait --for=condition=Ready pod/web --timeout=60s").map(drop)
}

/// The script ends its registry when it is asked politely.
struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        let asked = run(Command::new("kill").arg(self.0.id().to_string()));
        if let Err(error) = asked.map(drop).and(self.0.wait().map(drop).map_err(anyhow::Error::from)) {
            eprintln!("ending the registry: {error:#}");
        }
    }
}

/// Processes that a command line places in a directory.
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
        let links = ip(&format!("-n {} -o link", host.namespace))?;
        let ours = |line: &&str| !line.contains(": lo:") && !line.contains(PREFIX);
        ensure!(links.lines().filter(ours).count() == 0, "devices are left:\n{links}");
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
        let cgroup = hierarchy?.path().join(CGROUP.trim_start_matches('/'));
        ensure!(!cgroup.exists(), "{} is left", cgroup.display());
    }
    Ok(())
}
