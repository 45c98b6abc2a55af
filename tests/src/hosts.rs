//! Hosts for masters that are started by hand: each has its own network and mount namespace, all are on one
//! bridge that the test itself reaches too. Everything is removed when the values are dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};

/// Runs a command and returns its standard output; the error contains both outputs.
pub fn run(command: &mut Command) -> Result<String> {
    outputs(command).map(|(out, _)| out)
}

/// Runs a command and returns both outputs.
pub fn said(command: &mut Command) -> Result<String> {
    outputs(command).map(|(out, err)| out + &err)
}

fn outputs(command: &mut Command) -> Result<(String, String)> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{command:?} failed: {err}{out}");
    Ok((out, err))
}

fn ip(line: &str) -> Result<String> {
    run(Command::new("ip").args(line.split_whitespace()))
}

/// Returns the path of the binary under test.
pub fn binary() -> Result<PathBuf> {
    Ok(PathBuf::from(std::env::var_os("EPHOR_BIN").context("EPHOR_BIN is not set: run ops/test")?))
}

/// A bridge; the test has the address `.254` on it.
pub struct Bridge {
    prefix: String,
    network: String,
}

/// A host on a bridge.
pub struct Host {
    namespace: String,
    holder: Child,
    /// IP address of the host.
    pub address: String,
}

/// A running process; it is killed with SIGKILL when this value is dropped.
pub struct Running(Child);

impl Bridge {
    /// Creates a bridge for the /24 network that begins with `network` (`10.99.8`). Devices and namespaces
    /// are named after `prefix`, of at most eight letters.
    pub fn new(prefix: &str, network: &str) -> Result<Self> {
        // Remove what an earlier run that was killed has left.
        for line in ip("netns list")?.lines() {
            let name = line.split_whitespace().next().unwrap_or_default();
            if name.starts_with(&format!("{prefix}-")) {
                ip(&format!("netns del {name}"))?;
            }
        }
        let _ = ip(&format!("link del {prefix}"));
        ip(&format!("link add {prefix} type bridge"))?;
        let this = Self { prefix: prefix.to_owned(), network: network.to_owned() };
        ip(&format!("addr add {}/24 dev {prefix}", this.address()))?;
        ip(&format!("link set {prefix} up"))?;
        Ok(this)
    }

    /// Returns the address of the test on the bridge.
    pub fn address(&self) -> String {
        format!("{}.254", self.network)
    }

    /// Creates a host with a short name and the last number of its address.
    pub fn host(&self, name: &str, number: u8) -> Result<Host> {
        let Self { prefix, network } = self;
        let namespace = format!("{prefix}-{name}");
        let address = format!("{network}.{number}");
        ip(&format!("netns add {namespace}"))?;
        ip(&format!("link add {prefix}{name} type veth peer name eth0 netns {namespace}"))?;
        ip(&format!("link set {prefix}{name} master {prefix} up"))?;
        for line in [
            format!("addr add {address}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            "link set lo up".to_owned(),
        ] {
            ip(&format!("-n {namespace} {line}"))?;
        }
        // nsenter, because `ip netns exec` would hide the cgroups.
        let net = format!("--net=/run/netns/{namespace}");
        let holder =
            Command::new("nsenter").args([&net, "unshare", "--mount", "sleep", "infinity"]).spawn()?;
        Ok(Host { namespace, holder, address })
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Err(error) = ip(&format!("link del {}", self.prefix)) {
            eprintln!("removing the bridge: {error:#}");
        }
    }
}

impl Host {
    /// Builds a command that runs on the host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder.id().to_string(), "-n", "-m", "--"]).arg(program.as_ref());
        command
    }

    /// Builds an `ephor` command that runs on the host.
    pub fn ephor_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.command(binary()?);
        command.args(arguments);
        Ok(command)
    }

    /// Runs `ephor` on the host.
    pub fn ephor(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.ephor_command(arguments)?)
    }

    /// Runs `ephor` on the host and checks that it fails; returns its outputs.
    pub fn refused(&self, arguments: &[&str]) -> Result<String> {
        match self.ephor(arguments) {
            Ok(output) => anyhow::bail!("{arguments:?} succeeded: {output}"),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    /// Starts `ephor` on the host in the background, with its output appended to a log file.
    pub fn start(&self, log: &Path, arguments: &[&str]) -> Result<Running> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = self.ephor_command(arguments)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
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

impl Running {
    /// Kills the process with SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// Returns the exit status; `None` while the process runs.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.kill().and_then(|()| self.0.wait()).is_err() {
            eprintln!("a process could not be ended");
        }
    }
}
