//! Masters set up by hand as in the README, each in its own network namespace on one bridge, for tests of
//! operations on the group of masters. Independent of `ephor dev`: several sets with different names and
//! subnets can exist at the same time.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use kube::Client;

use crate::cluster::client_for;
use crate::hosts::{binary, run, said};
use crate::wait::eventually;

/// Timers slow enough for a machine busy with seven masters and their build (elections take up to about three
/// seconds); with shorter ones the tests would measure the machine.
const CONFIG: &str =
    "timers: {heartbeatMs: 200, electionMinMs: 1000, electionMaxMs: 1500, nodeGraceMs: 4000}\n";

/// The hosts, their bridge, and the masters that run on them.
pub struct Hosts {
    prefix: &'static str,
    subnet: &'static str,
    binary: PathBuf,
    root: tempfile::TempDir,
    namespaces: Vec<String>,
    masters: BTreeMap<String, Child>,
}

/// Returns the last octet of the address of `m<number>`.
pub fn octet(number: u8) -> u8 {
    10 + number
}

fn ip(line: &str) -> Result<String> {
    run(Command::new("ip").args(line.split_whitespace()))
}

impl Hosts {
    /// Creates a bridge called `prefix` (at most 8 characters) with the address `.1` of `subnet` (three
    /// octets); remains of an earlier run are removed first.
    pub fn new(prefix: &'static str, subnet: &'static str) -> Result<Self> {
        let binary = binary()?;
        clear(prefix);
        let root = tempfile::Builder::new().prefix(prefix).tempdir()?;
        let hosts = Self { prefix, subnet, binary, root, namespaces: Vec::new(), masters: BTreeMap::new() };
        fs::write(hosts.config(), CONFIG)?;
        ip(&format!("link add {prefix} type bridge"))?;
        ip(&format!("addr add {subnet}.1/24 dev {prefix}"))?;
        ip(&format!("link set {prefix} up"))?;
        Ok(hosts)
    }

    /// Runs a test on new hosts, and prints the logs if it fails.
    pub async fn run(
        prefix: &'static str,
        subnet: &'static str,
        test: impl AsyncFnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let mut hosts = Self::new(prefix, subnet)?;
        let result = test(&mut hosts).await;
        if result.is_err() {
            hosts.print_logs();
        }
        result
    }

    fn config(&self) -> PathBuf {
        self.root.path().join("config.yaml")
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Returns the address with this last octet.
    pub fn address(&self, octet: u8) -> String {
        format!("{}.{octet}", self.subnet)
    }

    /// Adds a host.
    pub fn add(&mut self, name: &str, octet: u8) -> Result<()> {
        let (link, bridge) = (self.namespace(name), self.prefix);
        ip(&format!("netns add {link}"))?;
        self.namespaces.push(link.clone());
        ip(&format!("link add {link} type veth peer name eth0 netns {link}"))?;
        ip(&format!("link set {link} master {bridge}"))?;
        ip(&format!("link set {link} up"))?;
        ip(&format!("-n {link} link set lo up"))?;
        ip(&format!("-n {link} link set eth0 up"))?;
        ip(&format!("-n {link} addr add {}/24 dev eth0", self.address(octet)))?;
        ip(&format!("-n {link} route add default via {}", self.address(1))).map(drop)
    }

    /// Changes the address of a host.
    pub fn readdress(&self, name: &str, octet: u8) -> Result<()> {
        let namespace = self.namespace(name);
        ip(&format!("-n {namespace} addr flush dev eth0"))?;
        ip(&format!("-n {namespace} addr add {}/24 dev eth0", self.address(octet)))?;
        ip(&format!("-n {namespace} route add default via {}", self.address(1))).map(drop)
    }

    /// Returns the data directory of a master.
    pub fn data_dir(&self, name: &str) -> String {
        self.root.path().join(name).to_string_lossy().into_owned()
    }

    /// Returns the log of a master.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.log_file(name)).unwrap_or_default()
    }

    fn log_file(&self, name: &str) -> PathBuf {
        self.root.path().join(format!("{name}.log"))
    }

    /// Starts a master on its host with the additional arguments in `line`.
    pub fn start(&mut self, name: &str, octet: u8, line: &str) -> Result<()> {
        let log: File = OpenOptions::new().create(true).append(true).open(self.log_file(name))?;
        let mut command = self.master(name, octet, line);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.masters.insert(name.to_owned(), command.spawn()?);
        Ok(())
    }

    /// Builds the command for a master on its host, with the additional arguments in `line`, without starting
    /// it.
    pub fn master(&self, name: &str, octet: u8, line: &str) -> Command {
        let mut command = self.command(name, &self.binary);
        command.args(["master", "--data-dir", &self.data_dir(name), "--config"]).arg(self.config());
        if !line.contains("--name") {
            command.args(["--name", name]);
        }
        command.args(["--advertise-address", &self.address(octet)]).args(line.split_whitespace());
        command
    }

    /// Builds a command that runs on a host.
    pub fn command(&self, name: &str, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace(name))).arg("--").arg(program);
        command
    }

    /// Returns the process id of a master.
    pub fn pid(&self, name: &str) -> Result<u32> {
        // nsenter replaces itself with the program, so its id is the master's.
        Ok(self.masters.get(name).with_context(|| format!("{name} does not run"))?.id())
    }

    /// Kills a master with SIGKILL and waits until it is gone.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let mut child = self.masters.remove(name).with_context(|| format!("{name} does not run"))?;
        child.kill()?;
        child.wait().map(drop).map_err(anyhow::Error::from)
    }

    /// Waits until a master's process ends by itself; returns its exit status.
    pub async fn end_of(&mut self, name: &str) -> Result<ExitStatus> {
        let mut child = self.masters.remove(name).with_context(|| format!("{name} does not run"))?;
        let ended = eventually(&format!("{name} to end"), async || Ok(child.try_wait()?)).await;
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        ended
    }

    /// Returns the path of the operator's kubeconfig, created by [`Hosts::found`].
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.path().join("kubeconfig")
    }

    /// Makes the operator's kubeconfig use this master.
    pub fn use_master(&self, name: &str, octet: u8) -> Result<()> {
        let server = format!("https://{}:6443", self.address(octet));
        let output = self.kubeconfig();
        let mut command = Command::new(&self.binary);
        command.args(["kubeconfig", "--data-dir", &self.data_dir(name), "--server", &server, "-o"]);
        run(command.arg(output)).map(drop)
    }

    /// Runs `ephor` as an operator from outside the hosts; returns both outputs.
    pub fn ephor(&self, line: &str) -> Result<String> {
        let mut command = Command::new(&self.binary);
        said(command.args(line.split_whitespace()).env("KUBECONFIG", self.kubeconfig()))
    }

    /// Creates a client that uses one master only.
    pub async fn client(&self, octet: u8) -> Result<Client> {
        client_for(&self.kubeconfig(), Some(&format!("https://{}:6443", self.address(octet)))).await
    }

    /// Creates the first master, and waits until it leads.
    pub async fn found(&mut self, name: &str, octet: u8, line: &str) -> Result<()> {
        self.add(name, octet)?;
        run(&mut self.master(name, octet, &format!("--init {line}")))?;
        self.use_master(name, octet)?;
        self.start(name, octet, line)?;
        self.voters(1).await
    }

    /// Creates `m1` as the leader and `m2` to `m<size>` as voters; `line` has additional arguments for all of
    /// them.
    pub async fn cluster(&mut self, size: u8, line: &str) -> Result<()> {
        self.found("m1", octet(1), line).await?;
        let join = Self::join_line(&self.ephor("members add")?)?;
        for number in 2..=size {
            self.join(number, &format!("{join} {line}"))?;
        }
        self.voters(usize::from(size)).await
    }

    /// Starts `m<number>` on a new host.
    pub fn join(&mut self, number: u8, line: &str) -> Result<()> {
        let name = format!("m{number}");
        self.add(&name, octet(number))?;
        self.start(&name, octet(number), line)
    }

    /// Waits until `wanted` masters vote and one of them leads.
    pub async fn voters(&self, wanted: usize) -> Result<()> {
        eventually(&format!("{wanted} voters"), async || {
            let list = self.ephor("members list")?;
            let voting = |line: &&str| line.ends_with(" voter") || line.ends_with(" leader");
            let now = list.lines().filter(voting).count();
            ensure!(now == wanted && list.contains(" leader\n"), "{list}");
            Ok(Some(()))
        })
        .await
    }

    /// Returns the name of the leader.
    pub async fn leader(&self) -> Result<String> {
        eventually("a leader", async || {
            let list = self.ephor("members list")?;
            let line = list.lines().find(|line| line.ends_with(" leader"));
            Ok(line.and_then(|line| line.split_whitespace().nth(1)).map(str::to_owned))
        })
        .await
    }

    /// Extracts the arguments of a printed join command.
    pub fn join_line(printed: &str) -> Result<String> {
        let line = printed.lines().find_map(|line| line.trim().strip_prefix("ephor master "));
        let line = line.with_context(|| format!("no join command in:\n{printed}"))?;
        Ok(line.split(" --advertise-address").next().unwrap_or(line).to_owned())
    }

    /// Prints the ends of all logs.
    fn print_logs(&self) {
        let Ok(entries) = fs::read_dir(self.root.path()) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != "log") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(40)..].join("\n");
            eprintln!("--- {} ---\n{end}", path.display());
        }
    }
}

/// Removes the remains of an earlier run that was killed.
fn clear(prefix: &str) {
    let namespaces = ip("netns list").unwrap_or_default();
    let names = namespaces.lines().filter_map(|line| line.split_whitespace().next());
    for name in names.filter(|name| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-'))) {
        // Deleting a namespace removes its end of the link only later; deleting the link works at once.
        if Path::new("/sys/class/net").join(name).exists()
            && let Err(error) = ip(&format!("link del {name}"))
        {
            eprintln!("removing {name}: {error:#}");
        }
        if let Err(error) = ip(&format!("netns del {name}")) {
            eprintln!("removing {name}: {error:#}");
        }
    }
    if Path::new("/sys/class/net").join(prefix).exists()
        && let Err(error) = ip(&format!("link del {prefix}"))
    {
        eprintln!("removing {prefix}: {error:#}");
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for (name, child) in &mut self.masters {
            if let Err(error) = child.kill().and_then(|()| child.wait()) {
                eprintln!("ending {name}: {error}");
            }
        }
        clear(self.prefix);
    }
}
